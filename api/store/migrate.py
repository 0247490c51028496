"""Brings the database to this version's tables. One way: an older api refuses a newer database by not knowing it."""

from importlib import import_module
from typing import Final

from sqlalchemy import Connection, Engine, inspect, text

HEAD: Final = "0005"
"""The newest migration; held to the scripts by a test."""
_VERSION_TABLE: Final = "alembic_version"


def migrate(engine: Engine) -> None:
    """Run every migration that has not run; all of them or none."""
    with engine.begin() as connection:
        if _version(connection) != HEAD:
            # Imported only when there is work: a restart must serve again at once.
            import_module("api.store.upgrade").upgrade(connection)


def _version(connection: Connection) -> str | None:
    """Return the last migration that has run."""
    if not inspect(connection).has_table(_VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar()  # noqa: S608 - our own name
