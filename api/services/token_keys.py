"""The keys that sign sandbox tokens: in a file of the api's own user, the newest signs, older ones still verify."""

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from api.services.identity import write_private
from sandboxd.contract.ids import RandomBytes
from sandboxd.contract.trust import MAX_TOKEN_SECONDS
from tunnels.tokens import SigningKey, Verifier

_SEED_BYTES: Final = 32
_SECOND_US: Final = 1_000_000
_ANNOUNCED_US: Final = 60 * _SECOND_US
"""So long a new key is told to nodes before it signs: whoever hears of it late would refuse its tokens."""
_KEPT_US: Final = (MAX_TOKEN_SECONDS + 86_400) * _SECOND_US


@dataclass(frozen=True, slots=True)
class _Held:
    seed: bytes
    created_at: int
    key: SigningKey


class TokenKeys:
    """All keys whose tokens are still good, oldest first; none before the first `tend`, which alone writes the file."""

    def __init__(self, path: Path, random_bytes: RandomBytes, *, days: float) -> None:
        self._path = path
        self._random_bytes = random_bytes
        self._period_us = round(days * 86_400 * _SECOND_US)
        self._held = _read(path)
        self.verifier = Verifier()
        self.verifier.trust(self.public())

    def tend(self, now_us: int) -> bool:
        """Make a key where the newest has signed for its period, and forget those that nothing good can come from.

        Returns whether anything changed.
        """
        kept = list(self._held)
        if not kept or kept[-1].created_at + self._period_us <= now_us:
            kept.append(_held(self._random_bytes(_SEED_BYTES), now_us))
        # A key signs until the next one does; after that its last tokens live for so long.
        kept = [one for one, after in zip(kept, [*kept[1:], None], strict=True) if not _is_over(after, now_us)]
        if kept == self._held:
            return False
        rows = [{"seed": b64encode(one.seed).decode(), "created_at": one.created_at} for one in kept]
        write_private(self._path, json.dumps({"keys": rows}).encode() + b"\n")
        self._held = kept
        self.verifier.trust(self.public())
        return True

    def signing(self, now_us: int) -> SigningKey:
        """Return the key that signs now."""
        told = [one for one in self._held if one.created_at + _ANNOUNCED_US <= now_us]
        return (told[-1] if told else self._held[0]).key

    def public(self) -> list[bytes]:
        """Return the public halves of all."""
        return [one.key.public for one in self._held]


def _held(seed: bytes, created_at: int) -> _Held:
    return _Held(seed, created_at, SigningKey.from_seed(seed))


def _is_over(after: _Held | None, now_us: int) -> bool:
    return after is not None and after.created_at + _ANNOUNCED_US + _KEPT_US <= now_us


def _read(path: Path) -> list[_Held]:
    """Read the file; what is not whole is as good as none: tokens are short-lived, and keys are the credential."""
    try:
        rows: Any = json.loads(path.read_bytes())["keys"]
        return [_held(b64decode(row["seed"], validate=True), int(row["created_at"])) for row in rows]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []
