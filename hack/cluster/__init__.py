"""Kubernetes on one machine, for tests and experiments: a control plane with fake nodes, or a real node."""
