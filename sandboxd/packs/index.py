"""Which unit lies where: needed when images are made, never when one is started. A cache: the packs are the truth."""

import sqlite3
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from sandboxd.packs.blobs import BlobMissingError, Blobs
from sandboxd.packs.keys import PackName, packs_of, parse_key
from sandboxd.packs.pack import DamagedError, Frame, PackIndex, read_index

_log = structlog.get_logger(__name__)

_WAIT_SECONDS: Final = 60
_TOGETHER: Final = 400
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS packs (
  id INTEGER PRIMARY KEY, domain TEXT NOT NULL, hex TEXT NOT NULL, UNIQUE (domain, hex));
CREATE TABLE IF NOT EXISTS frames (
  pack INTEGER NOT NULL, number INTEGER NOT NULL, offset INTEGER NOT NULL, stored INTEGER NOT NULL,
  raw INTEGER NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (pack, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS units (
  digest BLOB NOT NULL, pack INTEGER NOT NULL, frame INTEGER NOT NULL, block INTEGER NOT NULL, length INTEGER NOT NULL,
  PRIMARY KEY (digest, pack)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS units_of_pack ON units (pack);
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a unit lies."""

    pack: PackName
    frame: Frame
    block: int


class UnitIndex:
    """One file for one store, shared by the processes of a node. Everything blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def sync(self, blobs: Blobs, domain: str) -> None:
        """Learn of packs that came and went. BlobError."""
        with self._opened() as base:
            rows = base.execute("SELECT hex FROM packs WHERE domain = ?", (domain,))
            known: set[str] = {row[0] for row in rows}
        there: dict[str, int] = {}
        for blob in blobs.list(packs_of(domain)):
            name = parse_key(blob.key)
            if isinstance(name, PackName):
                there[name.hex] = blob.size
        self.forget(PackName(domain, each) for each in known - there.keys())
        for each in sorted(there.keys() - known):
            name = PackName(domain, each)
            try:
                self.add(name, read_index(blobs, name, there[each]))
            except DamagedError as error:
                _log.warning("a pack cannot be read", pack=name.key, error=str(error))
            except BlobMissingError:
                continue

    def add(self, name: PackName, index: PackIndex) -> None:
        """Learn of one pack."""
        with self._opened() as base, base:
            base.execute("BEGIN IMMEDIATE")
            cursor = base.execute("INSERT OR IGNORE INTO packs (domain, hex) VALUES (?, ?)", (name.domain, name.hex))
            if not cursor.rowcount:
                return
            (pack,) = base.execute(
                "SELECT id FROM packs WHERE domain = ? AND hex = ?", (name.domain, name.hex)
            ).fetchone()
            frames = [
                (pack, number, frame.offset, frame.stored, frame.raw, frame.digest)
                for number, frame in enumerate(index.frames)
            ]
            base.executemany("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?)", frames)
            units = [(unit.digest, pack, unit.frame, unit.block, unit.length) for unit in index.units]
            base.executemany("INSERT OR IGNORE INTO units VALUES (?, ?, ?, ?, ?)", units)

    def forget(self, names: Iterable[PackName]) -> None:
        """Learn that packs are gone."""
        with self._opened() as base, base:
            for name in names:
                row = base.execute(
                    "SELECT id FROM packs WHERE domain = ? AND hex = ?", (name.domain, name.hex)
                ).fetchone()
                if row is not None:
                    base.execute("DELETE FROM units WHERE pack = ?", row)
                    base.execute("DELETE FROM frames WHERE pack = ?", row)
                    base.execute("DELETE FROM packs WHERE id = ?", row)

    @contextmanager
    def lookup(self, domains: Sequence[str], avoid: Collection[PackName]) -> Generator["Lookup"]:
        """Look units up in these domains, the first before the second; what lies in a pack of `avoid` is not there."""
        with self._opened() as base:
            yield Lookup(base, domains, avoid)

    @contextmanager
    def _opened(self) -> Generator[sqlite3.Connection]:
        """Open the file; one that cannot be read is made anew."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            base = self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    self._path.with_name(self._path.name + suffix).unlink()
            base = self._connect()
        with closing(base):
            yield base

    def _connect(self) -> sqlite3.Connection:
        base = sqlite3.connect(self._path, timeout=_WAIT_SECONDS, isolation_level=None)
        try:
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = OFF")  # a cache: what a crash breaks is made anew
            base.executescript(_SCHEMA)
        except BaseException:
            base.close()
            raise
        return base


class Lookup:
    """Finds units; used by one thread."""

    def __init__(self, base: sqlite3.Connection, domains: Sequence[str], avoid: Collection[PackName]) -> None:
        self._base = base
        self._ranks = {domain: rank for rank, domain in enumerate(domains)}
        self._avoid = avoid
        self._packs: dict[int, PackName] = {}

    def find(self, digests: Collection[bytes]) -> dict[bytes, Place]:
        """Find where these lie, if they do."""
        found: dict[bytes, Place] = {}
        wanted = list(digests)
        for start in range(0, len(wanted), _TOGETHER):
            some = wanted[start : start + _TOGETHER]
            marks = ",".join("?" * len(some))
            rows = self._base.execute(
                "SELECT units.digest, units.pack, units.block, offset, stored, raw, frames.digest FROM units"  # noqa: S608 - marks
                " JOIN frames ON frames.pack = units.pack AND frames.number = units.frame"
                f" WHERE units.digest IN ({marks}) ORDER BY units.pack",
                some,
            )
            for digest, pack, block, *frame in rows:
                name = self._name(pack)
                if name is None or name in self._avoid or name.domain not in self._ranks:
                    continue
                old = found.get(digest)
                if old is None or self._ranks[name.domain] < self._ranks[old.pack.domain]:
                    found[digest] = Place(name, Frame(*frame), block)
        return found

    def _name(self, pack: int) -> PackName | None:
        if pack not in self._packs:
            row = self._base.execute("SELECT domain, hex FROM packs WHERE id = ?", (pack,)).fetchone()
            if row is None:
                return None
            self._packs[pack] = PackName(*row)
        return self._packs[pack]
