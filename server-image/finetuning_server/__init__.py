"""Serving of a base model with its adapter."""
