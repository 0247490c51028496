"""The log of one job: lines of JSON in a file, bounded. A position is the place of a line in that file."""

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sandboxd.contract.images import ImageReason, ImageState, LineKind
from sandboxd.contract.processes import render_time

LOG_BYTES: Final = 16 * 1024 * 1024
TEXT_BYTES: Final = 16 * 1024
"""Of one line; longer texts are several."""
_LAST_BYTES: Final = 64 * 1024
"""Kept free for the end of the log, whatever came before."""
_PIECE: Final = 256 * 1024


class JobLog:
    """Written by the one job, read by many. What does not fit is counted, and named at the end."""

    def __init__(self, path: Path, most_bytes: int = LOG_BYTES) -> None:
        self._path = path
        self._most = most_bytes
        self._lost = 0
        self.size = path.stat().st_size if path.exists() else 0

    def add(self, at: datetime, kind: LineKind, text: str, step: int | None = None) -> None:
        """Append a text as one line or several. OSError."""
        for start in range(0, len(text) or 1, TEXT_BYTES // 4):
            piece = text[start : start + TEXT_BYTES // 4]
            row: dict[str, Any] = {"kind": kind, "at": render_time(at)}
            row |= {} if step is None else {"step": step}
            line = _line(row | {"text": piece.encode(errors="replace").decode()})
            if self.size + len(line) > self._most - _LAST_BYTES:
                self._lost += len(piece)
            else:
                self._append(line)

    def end(self, at: datetime, state: ImageState, reason: ImageReason | None, message: str | None) -> None:
        """Append the last line. OSError."""
        if self._lost:
            self._append(_line({"kind": "lost", "at": render_time(at), "lost_bytes": self._lost}))
            self._lost = 0
        text = (message or "")[: TEXT_BYTES // 4]
        self._append(_line({"kind": "exit", "at": render_time(at), "state": state, "reason": reason, "text": text}))

    def read(self, after: int, until: int | None = None) -> Iterator[bytes]:
        """Yield whole lines beyond a position and, where it is given, before another. Blocks; OSError."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            position = _line_start(file.fileno(), after)
            file.seek(position)
            rest = b""
            while piece := file.read(_PIECE):
                *whole, rest = (rest + piece).split(b"\n")
                out: list[bytes] = []
                for line in whole:
                    following = position + len(line) + 1
                    if until is not None and following > until:
                        break
                    out.append(b'{"seq":%d,"next":%d,%b\n' % (position, following, line[1:]))
                    position = following
                if out:
                    yield b"".join(out)

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            written = os.write(descriptor, line)
            if written != len(line):  # a full disk: half a line would make the rest unreadable
                os.ftruncate(descriptor, self.size)
                return
        finally:
            os.close(descriptor)
        self.size += len(line)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _line_start(descriptor: int, after: int) -> int:
    """Return the first start of a line at or beyond a position somebody made up."""
    if after <= 0:
        return 0
    position = after - 1
    while piece := os.pread(descriptor, 4096, position):
        found = piece.find(b"\n")
        if found >= 0:
            return position + found + 1
        position += len(piece)
    return position
