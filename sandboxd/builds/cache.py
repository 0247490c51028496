"""Which image came of which step: one small file for each key, whole or not there."""

import re
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

_KEY: Final = re.compile(r"[0-9a-f]{64}")
_IMAGE: Final = re.compile(r"img[a-z2-7]{20}")


class StepCache:
    """A directory of them. Losing one costs a step run again, and nothing else."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def find(self, key: str) -> str | None:
        """Return the id of the image that came of a step."""
        try:
            text = (self._home / key).read_text()
        except (OSError, ValueError):
            return None
        return text if _IMAGE.fullmatch(text) else None

    def put(self, key: str, image_id: str) -> None:
        """Note what came of a step; what was known before is replaced."""
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._home, prefix=".", delete=False) as file:
            file.write(image_id)
        Path(file.name).replace(self._home / key)

    def sweep(self, images: Collection[str]) -> None:
        """Forget steps whose images are gone, and what a crash left. Blocks."""
        with suppress(FileNotFoundError):
            for path in list(self._home.iterdir()):
                if not _KEY.fullmatch(path.name) or self.find(path.name) not in images:
                    with suppress(OSError):
                        path.unlink()
