"""Artifacts to registries and hubs: the way of a relocation, backwards."""
