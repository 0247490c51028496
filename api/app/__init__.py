"""The program: puts the parts together, listens, and lets go when told to."""

from api.app.server import main

__all__ = ["main"]
