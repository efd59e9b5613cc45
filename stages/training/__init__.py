"""One training loop for probes and students."""
