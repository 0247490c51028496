"""How one registry lets us in: a name and password, or a token from where it says; each goes to one place only."""

import asyncio
import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from yarl import URL

from sandboxd.images.challenges import Challenge
from sandboxd.images.failures import unauthorized, unavailable, unsafe
from sandboxd.images.transport import TransientError, Transport, read_all

_ANSWER_LIMIT: Final = 64 * 1024
_TOKEN: Final = re.compile(r"[!-~]{1,16384}")


@dataclass(frozen=True, slots=True)
class Credential:
    """A name and password for one registry."""

    username: str
    password: str = field(repr=False)

    def header(self) -> str:
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class Admission:
    """What to send with each request for one repository of one registry."""

    def __init__(self, transport: Transport, repository: str, credential: Credential | None) -> None:
        self.header: str | None = None
        self._transport = transport
        self._scope = f"repository:{repository}:pull"
        self._credential = credential
        self._lock = asyncio.Lock()

    async def renew(self, refused: str | None, challenges: Sequence[Challenge]) -> None:
        """Find another header than the one that was refused. ImageSourceError, TransientError."""
        async with self._lock:
            if self.header != refused:
                return  # somebody who was refused too has found one
            by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
            if (bearer := by_scheme.get("bearer")) is not None:
                self.header = await self._token(bearer)
            elif "basic" in by_scheme and self._credential is not None and refused is None:
                self.header = self._credential.header()
            else:
                raise self._refused()

    def _refused(self) -> Exception:
        host = self._transport.origin.host
        if self._credential is None:
            return unauthorized(f"{host} wants a name and password for this image")
        return unauthorized(f"{host} does not accept this name and password")

    async def _token(self, challenge: Challenge) -> str:
        realm = _realm(challenge)
        host = self._transport.origin.host
        if not self._transport.may_carry(realm, credential=self._credential is not None):
            raise unsafe(f"{host} wants its token fetched over what is no https")
        # Only what this pull needs is asked for, whatever the registry would like to be asked.
        query = {"scope": self._scope}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        own = self._credential.header() if self._credential else None
        url = realm.update_query(query)
        async with self._transport.get(url, {"Accept": "application/json"}, own, redirects=0) as response:
            if response.status in (401, 403):
                raise self._refused()
            if response.status == 429 or response.status >= 500:
                raise TransientError(f"the token server of {host} answers {response.status}")
            if response.status != 200:
                raise unavailable(f"the token server of {host} answers {response.status}")
            body = await read_all(response, _ANSWER_LIMIT, self._transport.patience.document_seconds)
        return f"Bearer {_read_token(body, host or '')}"


def _realm(challenge: Challenge) -> URL:
    try:
        realm = URL(challenge.parameters.get("realm", ""))
    except ValueError as error:
        raise unavailable("the registry names a token server that cannot be read") from error
    if not realm.host or realm.user is not None:
        raise unavailable("the registry names a token server that cannot be read")
    return realm


def _read_token(body: bytes, host: str) -> str:
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise unavailable(f"the token server of {host} answers with no JSON") from error
    if isinstance(document, dict):
        fields = cast("dict[str, Any]", document)
        token = fields.get("token") or fields.get("access_token")
        if isinstance(token, str) and _TOKEN.fullmatch(token):
            return token
    raise unavailable(f"the token server of {host} answers with no token")
