"""Runs migrations. A module of its own, because only a database that is not up to date needs what it imports."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

SCRIPTS: Final = Path(__file__).parent.parent / "migrations"


def upgrade(connection: Connection) -> None:
    """Run every migration that has not run; all of them or none."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
