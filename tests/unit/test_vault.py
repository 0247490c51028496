"""Seals: what they open to, and for whom."""

import os
from pathlib import Path

import pytest

from api.services.secret_hosts import canonical_host, covers
from api.services.vault import KeyFileError, UnreadableError, Vault, open_vault, parse, render

OF = ("secret", "prj", "TOKEN", "1")


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return open_vault(tmp_path / "keys", os.urandom)


def test_what_was_sealed_opens(vault: Vault) -> None:
    for content in (b"", b"value", b"\0" * 65_536):
        assert vault.open(vault.seal(content, OF), OF) == content


def test_two_seals_of_one_thing_differ(vault: Vault) -> None:
    assert vault.seal(b"value", OF) != vault.seal(b"value", OF)


@pytest.mark.parametrize(
    "other", [("secret", "prj", "TOKEN", "2"), ("secret", "prk", "TOKEN", "1"), ("secret", "prj", "TOKEN"), ()]
)
def test_a_seal_does_not_open_as_anothers(vault: Vault, other: tuple[str, ...]) -> None:
    with pytest.raises(UnreadableError):
        vault.open(vault.seal(b"value", OF), other)


def test_no_byte_of_a_seal_can_be_changed(vault: Vault) -> None:
    sealed = vault.seal(b"value", OF)
    for place in range(len(sealed)):
        changed = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        with pytest.raises(UnreadableError):
            vault.open(changed, OF)
    for size in range(len(sealed)):
        with pytest.raises(UnreadableError):
            vault.open(sealed[:size], OF)


def test_another_installation_opens_nothing(vault: Vault, tmp_path: Path) -> None:
    with pytest.raises(UnreadableError):
        open_vault(tmp_path / "others", os.urandom).open(vault.seal(b"value", OF), OF)


def test_keys_are_made_once_and_private(vault: Vault, tmp_path: Path) -> None:
    sealed = vault.seal(b"value", OF)
    assert open_vault(tmp_path / "keys", os.urandom).open(sealed, OF) == b"value"
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600


def test_an_older_key_still_opens_and_the_newest_seals(vault: Vault, tmp_path: Path) -> None:
    sealed = vault.seal(b"value", OF)
    new = open_vault(tmp_path / "new", os.urandom)
    rows = [*parse((tmp_path / "keys").read_bytes()), *parse((tmp_path / "new").read_bytes())]
    (tmp_path / "keys").write_bytes(render(rows))
    both = open_vault(tmp_path / "keys", os.urandom)
    assert both.open(sealed, OF) == b"value"
    assert not sealed.startswith(both.head)
    assert new.open(both.seal(b"value", OF), OF) == b"value"


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"keys": []}', b'{"keys": [{}]}', b'{"keys": [{"name": "00", "key": "AA=="}]}', b"\xff"]
)
def test_a_damaged_file_is_no_reason_to_make_another(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(KeyFileError):
        open_vault(tmp_path / "keys", os.urandom)
    assert (tmp_path / "keys").read_bytes() == content


@pytest.mark.parametrize(
    ("hosts", "name", "expected"),
    [
        (["example.com"], "example.com", True),
        (["example.com"], "a.example.com", False),
        (["*.example.com"], "a.b.example.com", True),
        (["*.example.com"], "example.com", False),
        (["*.example.com"], "badexample.com", False),
        ([], "example.com", False),
    ],
)
def test_hosts_cover_themselves_or_what_is_below(hosts: list[str], name: str, expected: bool) -> None:
    assert covers(hosts, name) is expected


def test_hosts_have_one_form() -> None:
    assert canonical_host("*.EXAMPLE.com.") == "*.example.com"
    assert canonical_host("B\u00fccher.example") == "xn--bcher-kva.example"
