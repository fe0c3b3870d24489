"""One module a command: what it does after its arguments were read."""
