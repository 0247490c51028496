import json
from typing import Any

import pytest

from api.store.migrate import HEAD
from infra.backup.manifest import Known, UnfitError, parse, targets
from infra.backup.restore import newest_migration

KNOWN = Known(version="0.3.0", database="0004", ledger=2)


def a_manifest(**changes: Any) -> bytes:
    document: dict[str, Any] = {
        "format": 1,
        "version": "0.3.0",
        "made_at": "2026-11-24T10:00:00+00:00",
        "host": "here",
        "instance": "sandlot",
        "database": "0004",
        "ledger": 2,
        "files": [{"name": "api/api.db", "size": 3, "sha256": "0" * 64}],
    }
    return json.dumps(document | changes).encode()


@pytest.mark.parametrize(
    "older", [{}, {"version": "0.2.11"}, {"database": "0001"}, {"ledger": 1}, {"database": None, "ledger": None}]
)
def test_what_this_or_an_older_program_made_is_read(older: dict[str, Any]) -> None:
    assert parse(a_manifest(**older), KNOWN).files[0].name == "api/api.db"


@pytest.mark.parametrize(
    "newer", [{"format": 2}, {"version": "0.3.1"}, {"version": "0.10.0"}, {"database": "0005"}, {"ledger": 3}]
)
def test_what_a_newer_program_made_is_refused(newer: dict[str, Any]) -> None:
    with pytest.raises(UnfitError, match="this"):
        parse(a_manifest(**newer), KNOWN)


@pytest.mark.parametrize(
    "name",
    ["../node.key", "/etc/passwd", "api/../../x", "node/other", "images/x.json", "api/api.db\n", "manifest.json"],
)
def test_no_file_but_the_known_ones_is_named(name: str) -> None:
    with pytest.raises(UnfitError):
        parse(a_manifest(files=[{"name": name, "size": 1, "sha256": "0" * 64}]), KNOWN)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"{", b'{"format": "x"}', b'{"format": 1, "version": []}'])
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(UnfitError):
        parse(content, KNOWN)


def test_a_file_named_twice_is_refused() -> None:
    entry = {"name": "node/node.key", "size": 1, "sha256": "0" * 64}
    with pytest.raises(UnfitError, match="twice"):
        parse(a_manifest(files=[entry, entry]), KNOWN)


def test_an_old_write_ahead_log_goes_with_its_ledger() -> None:
    assert targets(["node/ledger.db", "node/node.key"]) == ["ledger.db", "ledger.db-wal", "ledger.db-shm", "node.key"]


def test_the_newest_migration_is_the_one_the_database_is_brought_to() -> None:
    assert newest_migration() == HEAD
