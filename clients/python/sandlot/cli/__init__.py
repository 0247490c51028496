"""The `sandlot` command: run, create, ps, exec, rm."""

from sandlot.cli.app import app


def main() -> None:
    """Run the command line and leave with its exit code."""
    app()


__all__ = ["app", "main"]
