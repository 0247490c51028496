"""`python -m infra.backup.copy_database SOURCE TARGET`: a consistent copy of the api's database, made as its user.

Root does not open that database: SQLite follows what lies beside it, and all of it is the api user's to replace.
Prints the last migration.
"""

import os
import sqlite3
import stat
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import quote


def main(source: str, target: str) -> None:
    """Copy in one go: a reader of a write-ahead log keeps no writer waiting."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path = Path(source + suffix)
        # Reading a pipe would wait for ever. Whoever swaps it in later gains no more than a backup that is given up.
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            sys.exit(f"{path} is no plain file")
    with (
        closing(sqlite3.connect(f"file:{quote(source)}?mode=rw", uri=True, timeout=30)) as origin,
        closing(sqlite3.connect(target)) as copy,
    ):
        origin.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # a whole database in one file
        print(copy.execute("SELECT version_num FROM alembic_version").fetchone()[0])


if __name__ == "__main__":
    os.umask(0o077)
    main(*sys.argv[1:])
