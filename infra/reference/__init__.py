"""Writes the pages of `docs/` that are drawn from tables in the code, so that they cannot say something else."""
