"""Set-up, diagnosis and the one-box launcher: everything that happens before a sandbox exists."""
