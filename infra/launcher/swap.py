"""Puts a set of files and directories in place of others, all or none, whatever dies in between.

What is replaced is moved aside, not deleted. A journal is written before the first move; while it is there, the moves
are not agreed, and whoever comes next undoes them.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

JOURNAL: Final = ".swap.json"


class _Plan(NamedTuple):
    fresh: str
    aside: str
    names: list[str]
    had: list[str]
    """Names that were there before."""


def put(base: Path, fresh: Path, aside: Path, names: Iterable[str], moved: Callable[[str], None] | None = None) -> None:
    """Move each name out of `base` into `aside`, and into `base` what `fresh` has of it; all below `base`.

    Either all of it has happened when this returns, or none: it undoes what it did when it fails, and `undo` does when
    the program was killed. `moved` is told each name that is done.
    """
    every = list(names)
    plan = _Plan(fresh.name, aside.name, every, [name for name in every if os.path.lexists(base / name)])
    aside.mkdir(mode=0o700)
    _write(base, plan)
    try:
        for name in every:
            _move(base / name, aside / name)
            _move(fresh / name, base / name)
            if moved is not None:
                moved(name)
        _sync(base)
    except BaseException:
        undo(base)
        raise
    (base / JOURNAL).unlink()
    _sync(base)
    shutil.rmtree(fresh)


def undo(base: Path) -> bool:
    """Undo moves that were cut off; tells whether there were any. May be repeated, and cut off itself."""
    try:
        plan = _Plan(**json.loads((base / JOURNAL).read_bytes()))
    except FileNotFoundError:
        return False
    fresh, aside = base / plan.fresh, base / plan.aside
    for name in reversed(plan.names):
        was_moved = os.path.lexists(aside / name)
        if (was_moved or name not in plan.had) and os.path.lexists(base / name):
            _move(base / name, fresh / name)
        if was_moved:
            _move(aside / name, base / name)
    (base / JOURNAL).unlink()
    _sync(base)
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(fresh, ignore_errors=True)
    return True


def _move(source: Path, target: Path) -> None:
    if os.path.lexists(source):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        source.rename(target)


def _write(base: Path, plan: _Plan) -> None:
    new = base / f"{JOURNAL}.new"
    with new.open("w") as file:
        json.dump(plan._asdict(), file)
        file.flush()
        os.fsync(file.fileno())
    new.rename(base / JOURNAL)
    _sync(base)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
