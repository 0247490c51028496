"""`python -m infra.support.record DATABASE SANDBOX`: print the api's record of a sandbox as JSON, as the api's user."""

import json
import sqlite3
import sys
from contextlib import closing
from urllib.parse import quote

_LISTS = ("labels", "spec")


def main(database: str, sandbox_id: str) -> None:
    """Print the record, or null. Whoever makes this wait gains a bundle without it: its time is bounded."""
    with closing(sqlite3.connect(f"file:{quote(database)}?mode=rw", uri=True, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        row = connection.execute("SELECT * FROM sandboxes WHERE id = ?", (sandbox_id,)).fetchone()
    record = None if row is None else {name: row[name] for name in row.keys()}  # noqa: SIM118 - a Row is no mapping
    if record is not None:
        record |= {name: json.loads(record[name]) for name in _LISTS if record.get(name)}
    print(json.dumps(record, default=repr))


if __name__ == "__main__":
    main(*sys.argv[1:])
