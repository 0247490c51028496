"""A look into the ledger of a node agent that may be down, from outside."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path


def images_in_use(path: Path) -> set[str]:
    """List the images of sandboxes that have not ended; empty while an agent has the ledger: its leases say so then."""
    if not path.exists():
        return set()
    try:
        with closing(sqlite3.connect(path, timeout=0)) as connection:
            rows = connection.execute("SELECT spec FROM sandboxes WHERE phase != 'ended'").fetchall()
    except sqlite3.Error:
        return set()
    return {json.loads(spec)["image"]["id"] for (spec,) in rows}
