"""What was kept of failed sandboxes, `<data>/failures/<sandbox>.json`: bounded in count, size and age."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from sandboxd.runner.failure import Failure

MOST_FILES: Final = 200
MOST_BYTES: Final = 32 << 20
MOST_SECONDS: Final = 14 * 86_400
_TEXT_BYTES: Final = 64 * 1024


class FailureStore:
    """Writes one file a failure, and removes the oldest beyond the bounds."""

    def __init__(self, directory: Path, *, now: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._now = now

    def __call__(self, failure: Failure) -> None:
        """Keep one. OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        document: dict[str, Any] = {
            name: _bounded(value) if isinstance(value, str) else value for name, value in asdict(failure).items()
        }
        document["at"] = self._now()
        target = self._directory / f"{failure.sandbox_id}.json"
        aside = target.with_name(f".{target.name}.new")
        # A panic of the sentry may quote what the sandbox made it say: text, not for a terminal as it is.
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(document, file)
        aside.replace(target)
        self._prune()

    def _prune(self) -> None:
        kept: list[tuple[float, int, Path]] = []
        for path in self._directory.glob("*.json"):
            with suppress(FileNotFoundError):
                found = path.stat()
                kept.append((found.st_mtime, found.st_size, path))
        size = 0
        for number, (at, bytes_, path) in enumerate(sorted(kept, reverse=True)):
            size += bytes_
            if number >= MOST_FILES or size > MOST_BYTES or self._now() - at > MOST_SECONDS:
                path.unlink(missing_ok=True)


def _bounded(text: str) -> str:
    return text if len(text) <= _TEXT_BYTES else f"{text[:_TEXT_BYTES]}\n[{len(text) - _TEXT_BYTES} more]"
