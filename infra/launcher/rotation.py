"""Logs of programs that keep writing: so many files of so many bytes each, oldest gone first."""

import os
import shutil
from pathlib import Path
from typing import Final, NamedTuple

_MIB: Final = 1 << 20


class Bounds(NamedTuple):
    """How much of one program's log is kept: `files` old ones of `file_bytes` each, and the one being written."""

    file_bytes: int = 16 * _MIB
    files: int = 4


DEFAULT: Final = Bounds()


def older(log: Path, number: int) -> Path:
    """Return the name of an older log; 1 is the newest of them."""
    return log.with_suffix(f".log.{number}")


def all_of(log: Path) -> list[Path]:
    """List the logs that are there, the oldest first."""
    numbered = [(int(path.suffix[1:]), path) for path in log.parent.glob(f"{log.name}.*") if path.suffix[1:].isdigit()]
    return [path for _, path in sorted(numbered, reverse=True)] + ([log] if log.exists() else [])


def turn_over(log: Path, bounds: Bounds) -> None:
    """Begin a new log if the last one is full; nobody may be writing."""
    if log.exists() and log.stat().st_size > bounds.file_bytes:
        _shift(log, bounds)
        if bounds.files:
            log.replace(older(log, 1))
        else:
            log.unlink()


def cut_off(log: Path, bounds: Bounds) -> None:
    """Turn over a log that is being written: its writer has it open, so it is copied and begins anew.

    Of more than one file's worth the end is kept; what is written between the copy and the cut is lost.
    """
    size = log.stat().st_size
    if size <= bounds.file_bytes:
        return
    _shift(log, bounds)
    if bounds.files:
        descriptor = os.open(older(log, 1), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        with log.open("rb") as source, os.fdopen(descriptor, "wb") as target:
            source.seek(max(0, size - bounds.file_bytes))
            shutil.copyfileobj(source, target, _MIB)
            if target.tell() > bounds.file_bytes:  # its writer went on meanwhile
                target.truncate(bounds.file_bytes)
    os.truncate(log, 0)


def _shift(log: Path, bounds: Bounds) -> None:
    """Make room for one more old log, and remove those beyond the bound, also of a time when more were kept."""
    for path in all_of(log):
        if path == log:
            continue
        number = int(path.suffix[1:])
        if number >= bounds.files:
            path.unlink()
        else:
            path.replace(older(log, number + 1))
