"""What every program in a pod shares: errors, exit codes, progress, artifacts, data and rendering."""
