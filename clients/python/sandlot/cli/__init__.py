"""The `sandlot` command."""

from sandlot.cli.app import app, main

__all__ = ["app", "main"]
