"""What a check says: a level, a fact, and the fix where one is needed."""

from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARN = "warn"
    """Works, with a limit or a risk that is named."""
    FAIL = "fail"
    """Sandboxes will not run, or not safely."""


class Finding(NamedTuple):
    """The result of one check: one line."""

    check: str
    level: Level
    fact: str
    fix: str = ""


def ok(check: str, fact: str) -> Finding:
    return Finding(check, Level.OK, fact)


def warn(check: str, fact: str, fix: str) -> Finding:
    return Finding(check, Level.WARN, fact, fix)


def fail(check: str, fact: str, fix: str) -> Finding:
    return Finding(check, Level.FAIL, fact, fix)
