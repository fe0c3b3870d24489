"""The finetune command: runs manifests on one machine and talks to a cluster."""
