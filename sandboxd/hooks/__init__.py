"""What must be true for a sandbox to run, as an ordered list of idempotent hooks, one a file."""
