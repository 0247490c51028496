"""What `sandlotd logs` prints: lines of the programs' logs, made fit for a terminal."""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from infra.config import LauncherConfig
from infra.launcher import rotation

PROGRAMS: Final = ("api", "node", "gateway")
_POLL_SECONDS: Final = 0.25
_LONGEST_LINE: Final = 8192


def show(
    config: LauncherConfig, chosen: Sequence[str], *, lines: int, follow: bool, say: Callable[[str], None] = print
) -> None:
    """Print the last lines of each program's log, in the order of time where they say it, then what comes."""
    logs = {name: config.logs_dir / f"{name}.log" for name in chosen}
    followed = [(name, _Follower(path)) for name, path in logs.items()]
    last = [(_time(line), name, line) for name, path in logs.items() for line in _last(path, lines)]
    for _, name, line in sorted(last, key=lambda entry: entry[0])[-lines:]:
        say(_shown(name, line, many=len(logs) > 1))
    while follow:
        for name, follower in followed:
            for line in follower.new():
                say(_shown(name, line, many=len(logs) > 1))
        time.sleep(_POLL_SECONDS)


def is_there(config: LauncherConfig, chosen: Sequence[str]) -> bool:
    """Tell whether the launcher has written any of these logs."""
    return any((config.logs_dir / f"{name}.log").exists() for name in chosen)


def printable(text: str) -> str:
    """Return text without what would steer a terminal: some of it comes from the api, whose user is not trusted."""
    return "".join(each if each.isprintable() or each == "\t" else "?" for each in text[:_LONGEST_LINE])


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of one log; a line longer than the bound is cut."""
    try:
        with path.open("rb") as log:
            while line := log.readline(_LONGEST_LINE * 4):
                yield line.decode(errors="replace").rstrip("\n")
    except FileNotFoundError:
        return


def _last(log: Path, lines: int) -> list[str]:
    found: deque[str] = deque(maxlen=lines)
    for path in rotation.all_of(log)[-2:]:
        found.extend(lines_of(path))
    return list(found)


def _time(line: str) -> str:
    try:
        document = json.loads(line)
    except ValueError:
        return ""
    return str(document.get("timestamp", "")) if isinstance(document, dict) else ""  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - any JSON object


def _shown(name: str, line: str, *, many: bool) -> str:
    return f"{name:4}  {printable(line)}" if many else printable(line)


class _Follower:
    """Reads what is added to a log from now on, across its turns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def new(self) -> list[str]:
        try:
            with self._path.open("rb") as log:
                if os.fstat(log.fileno()).st_size < self._at:
                    self._at, self._rest = 0, b""  # turned over
                log.seek(self._at)
                read = log.read(1 << 20)
        except FileNotFoundError:
            return []
        self._at += len(read)
        *whole, self._rest = (self._rest + read).split(b"\n")
        self._rest = self._rest[-_LONGEST_LINE:]
        return [line.decode(errors="replace") for line in whole]
