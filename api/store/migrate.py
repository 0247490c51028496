"""Brings the database to this version's tables. One way: an older api refuses a newer database by not knowing it."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

SCRIPTS = Path(__file__).parent.parent / "migrations"


def migrate(engine: Engine) -> None:
    """Run every migration that has not run; all of them or none."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
