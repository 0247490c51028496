"""The direct way to a sandbox's node: when it may be used, and when the api is the better way. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from sandlot.errors import ApiError, SandlotError, UnreachableError
from sandlot.models import parse_time

_PAUSE_SECONDS: Final = 30.0
"""How long a node that could not be reached is left alone: a firewall in between will not go away by itself."""
_MARGIN_SECONDS: Final = 60.0
"""A token is renewed so long before its end."""
_UNAUTHENTICATED: Final = 401
_MOVED: Final = 421


@dataclass(frozen=True)
class Target:
    """Where a request goes, and with which credential."""

    url: str
    token: str


class NodeAccess:
    """`access` of a create answer. Shared by all calls of one sandbox; a race costs a token, never a wrong call."""

    def __init__(self, sandbox_id: str, url: str, token: str, scopes: list[str], expires_at: float | None) -> None:
        self.sandbox_id = sandbox_id
        self.scopes = scopes
        self._target = Target(url.rstrip("/"), token)
        self._expires_at = expires_at
        self._closed_until = 0.0
        self._is_stale = False
        self._is_off = False

    @classmethod
    def parse(cls, answer: object, api_url: str) -> "NodeAccess | None":
        """Return the way `answer` offers; None if it offers none, or one with less protection than the api's."""
        sandbox = cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}
        raw = sandbox.get("access")
        if not isinstance(raw, dict):
            return None
        access = cast("dict[str, Any]", raw)
        url, token, scopes = access.get("url"), access.get("token"), access.get("scopes")
        if not isinstance(url, str) or not isinstance(token, str):
            return None
        if not url.startswith("https://" if api_url.startswith("https://") else ("http://", "https://")):
            return None
        names = cast("list[str]", scopes) if isinstance(scopes, list) else []
        return cls(str(sandbox.get("id")), url, token, names, _expiry(access))

    def is_open(self, now: float) -> bool:
        """Tell whether the next call may try the node."""
        return not self._is_off and now >= self._closed_until

    def needs_token(self, now: float) -> bool:
        """Tell whether the token must be renewed before the next call."""
        return self._is_stale or (self._expires_at is not None and now > self._expires_at - _MARGIN_SECONDS)

    @property
    def target(self) -> Target:
        return self._target

    def renew(self, answer: Mapping[str, Any]) -> None:
        """Take the token of an answer to `tokens`; without one there is no direct way any more."""
        token = answer.get("token")
        if not isinstance(token, str):
            self.close()
            return
        self._target = Target(self._target.url, token)
        self._expires_at = _expiry(answer)
        self._is_stale = False

    def close(self) -> None:
        """Never try the node again."""
        self._is_off = True

    def turns_back(self, error: SandlotError, now: float) -> bool:
        """Take note of a failure on the direct way; True if the api is to be asked the same.

        The node's other errors are the api's, since it passes them through.
        """
        if isinstance(error, UnreachableError):
            self._closed_until = now + _PAUSE_SECONDS
            return True
        if not isinstance(error, ApiError):
            return False
        if error.status == _UNAUTHENTICATED:
            if self._is_stale:
                self.close()
            self._is_stale = True
            return True
        if error.status == _MOVED:
            self.close()
            return True
        return False


def _expiry(answer: Mapping[str, Any]) -> float | None:
    at = parse_time(answer.get("expires_at"))
    return None if at is None else at.timestamp()
