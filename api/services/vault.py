"""Seals what must not be read out of the database: AES-256-GCM under keys in a file of the api's own user.

A seal is a byte for its form, four that name the key, twelve of nonce, and the ciphertext with its tag. What it is of
is part of it: moved to another row it does not open. The newest key seals, all of them open.
"""

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from api.services.identity import write_private
from sandboxd.contract.ids import RandomBytes

KEY_BYTES: Final = 32
_FORM: Final = b"\x01"
_NAME_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = len(_FORM) + _NAME_BYTES + _NONCE_BYTES


class UnreadableError(Exception):
    """What was sealed cannot be opened: its key is not here, or it is not what it is taken for."""


class KeyFileError(Exception):
    """The file of keys is damaged. Nothing is put in its place: what its keys have sealed would be lost."""


@dataclass(frozen=True, slots=True)
class _Key:
    name: bytes
    raw: bytes
    cipher: AESGCM


class Vault:
    """Seals and opens. `open_vault` makes one."""

    def __init__(self, keys: list[_Key], random_bytes: RandomBytes) -> None:
        self._keys = {key.name: key for key in keys}
        self._newest = keys[-1]
        self._random_bytes = random_bytes

    def seal(self, content: bytes, of: tuple[str, ...]) -> bytes:
        """Return content that only this installation can open, and only as `of`."""
        nonce = self._random_bytes(_NONCE_BYTES)
        head = _FORM + self._newest.name + nonce
        return head + self._newest.cipher.encrypt(nonce, content, _bound(head, of))

    def open(self, sealed: bytes, of: tuple[str, ...]) -> bytes:
        """Return what was sealed. UnreadableError."""
        head = sealed[:_HEAD_BYTES]
        key = self._keys.get(head[1 : 1 + _NAME_BYTES])
        if key is None or head[:1] != _FORM:
            raise UnreadableError("its key is not here")
        try:
            return key.cipher.decrypt(head[-_NONCE_BYTES:], sealed[_HEAD_BYTES:], _bound(head, of))
        except (InvalidTag, ValueError):
            raise UnreadableError("it is not what it is taken for") from None

    @property
    def head(self) -> bytes:
        """How what the newest key seals begins."""
        return _FORM + self._newest.name


def open_vault(path: Path, random_bytes: RandomBytes) -> Vault:
    """Read the keys, or make the first. KeyFileError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        made = new_key(random_bytes)
        write_private(path, render([made]))
        return Vault([_key(made)], random_bytes)
    return Vault([_key(each) for each in parse(raw)], random_bytes)


def new_key(random_bytes: RandomBytes) -> dict[str, str]:
    """Return a key as the file has it."""
    return {
        "name": random_bytes(_NAME_BYTES).hex(),
        "key": b64encode(random_bytes(KEY_BYTES)).decode(),
    }


def render(rows: list[dict[str, str]]) -> bytes:
    """Return the content of the file, the newest key last."""
    return json.dumps({"keys": rows}).encode() + b"\n"


def parse(raw: bytes) -> list[dict[str, str]]:
    """Return the keys in the content of the file, checked. KeyFileError."""
    try:
        rows: Any = json.loads(raw)["keys"]
        keys = [{"name": str(row["name"]), "key": str(row["key"])} for row in rows]
        sizes = {(len(bytes.fromhex(each["name"])), len(b64decode(each["key"], validate=True))) for each in keys}
    except (ValueError, KeyError, TypeError):
        raise KeyFileError("the keys that secrets are sealed with cannot be read: restore their file") from None
    if sizes != {(_NAME_BYTES, KEY_BYTES)}:
        raise KeyFileError("the keys that secrets are sealed with are not whole: restore their file")
    return keys


def _key(row: dict[str, str]) -> _Key:
    raw = b64decode(row["key"])
    return _Key(bytes.fromhex(row["name"]), raw, AESGCM(raw))


def _bound(head: bytes, of: tuple[str, ...]) -> bytes:
    """What is bound to a seal: no two different `of` are the same bytes."""
    return head + json.dumps(of).encode()
