"""What every program in a pod shares: the process contract, progress, artifacts, data and models."""
