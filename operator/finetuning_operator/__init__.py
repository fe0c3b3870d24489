"""The operator: pure reconcile functions and, beside them, the cluster input and output that realises their plans."""
