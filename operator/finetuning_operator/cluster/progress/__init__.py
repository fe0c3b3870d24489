"""The progress endpoint: programs tell how far they are, without any right in the cluster."""
