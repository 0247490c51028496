"""Calls on a sandbox's files: what its guest says is checked, what streams through is not held."""
