"""`python -m infra.reference` writes the pages; `--check` only says which are not up to date."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from infra.reference import cli, errors, lifecycle, settings

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
PAGES: Final[dict[str, Callable[[], str]]] = {
    "cli.md": cli.page,
    "errors.md": errors.page,
    "lifecycle.md": lifecycle.page,
    "settings.md": settings.page,
}


def stale() -> list[str]:
    """Return the names of pages that differ from what the code says."""
    return [name for name, page in PAGES.items() if not _holds(DOCS / name, page())]


def main(arguments: Sequence[str]) -> int:
    names = stale()
    if arguments == ["--check"]:
        for name in names:
            print(f"docs/{name} is not up to date: run 'python -m infra.reference'")
        return 1 if names else 0
    for name in names:
        (DOCS / name).write_text(PAGES[name]())
        print(f"wrote docs/{name}")
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
