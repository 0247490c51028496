"""Writes the public API's document from the code.

`python -m openapi.generate` writes it; with `--check` it says whether the committed one is up to date.
"""

import json
import sys
from pathlib import Path

from api.app.public import public_app

DOCUMENT = Path(__file__).parent / "api.json"


def main() -> int:
    text = json.dumps(public_app().openapi(), indent=1, ensure_ascii=False) + "\n"
    if sys.argv[1:] == ["--check"]:
        if DOCUMENT.exists() and DOCUMENT.read_text(encoding="utf-8") == text:
            return 0
        print(f"{DOCUMENT} is out of date: run python -m openapi.generate", file=sys.stderr)
        return 1
    DOCUMENT.write_text(text, encoding="utf-8")
    print(f"wrote {DOCUMENT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
