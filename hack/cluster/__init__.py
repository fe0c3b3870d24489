"""A Kubernetes control plane of one machine, for tests and experiments: real servers, fake nodes."""
