"""Which image came of which step: one small file for each key, whole or not there."""

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

KEPT_SECONDS: Final = 30 * 24 * 3600.0
_IMAGE: Final = re.compile(r"img[a-z2-7]{20}")


class StepCache:
    """A directory of them. Losing one costs a step run again, and nothing else."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def find(self, key: str) -> str | None:
        """Return the id of the image that came of a step; it may be gone meanwhile."""
        place = self._home / key
        try:
            text = place.read_text()
            os.utime(place)
        except (OSError, ValueError):
            return None
        return text if _IMAGE.fullmatch(text) else None

    def put(self, key: str, image_id: str) -> None:
        """Note what came of a step; what was known before is replaced."""
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._home, prefix=".", delete=False) as file:
            file.write(image_id)
        Path(file.name).replace(self._home / key)

    def sweep(self, now: float) -> None:
        """Forget what nobody has asked for in a month, and what a crash left. Blocks."""
        with suppress(FileNotFoundError):
            for path in list(self._home.iterdir()):
                with suppress(OSError):
                    if path.stat().st_mtime < now - KEPT_SECONDS:
                        path.unlink()
