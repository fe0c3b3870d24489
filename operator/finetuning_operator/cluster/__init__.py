"""Cluster input and output: what realises plans on Kubernetes and reads back what became of them."""
