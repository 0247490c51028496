"""One request to a registry or where it sends us: bounded, guarded at every hop, credentials for one origin only."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import aiohttp
from yarl import URL

from sandboxd.images.addresses import ForbiddenAddressError, GuardedResolver, Trust, literal, permitted
from sandboxd.images.failures import ImageSourceError, too_large, unavailable, unsafe

_REDIRECTS: Final = 5
_REDIRECT_STATUS: Final = frozenset({301, 302, 303, 307, 308})
_HEADER_BYTES: Final = 16 * 1024
_PIECE: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a registry is waited for, and how often it is asked again."""

    connect_seconds: float = 10
    answer_seconds: float = 60
    """From the request to the end of the headers."""
    document_seconds: float = 60
    """For a whole manifest, config or token."""
    window_seconds: float = 30
    """In each such stretch of a layer's download …"""
    window_bytes: int = 32 * 1024
    """… at least so much must come."""
    attempts: int = 5
    """Tries in a row that bring nothing new."""
    backoff_seconds: float = 0.5
    """Before the second try; doubled before each further one."""
    longest_backoff_seconds: float = 20
    longest_wait_seconds: float = 120
    """A `Retry-After` above this is not waited for."""


class TransientError(Exception):
    """It did not work, but may the next time. `wait` is when the server says so."""

    def __init__(self, detail: str, wait: float | None = None) -> None:
        super().__init__(detail)
        self.wait = wait


class Transport:
    """HTTP to one registry, and to where that one sends us."""

    def __init__(self, host: str, trust: Trust, patience: Patience) -> None:
        self.origin = URL(f"{'http' if trust.insecure else 'https'}://{host}")
        self.patience = patience
        self._trust = trust
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=GuardedResolver(self.origin.host or "", self._trust)),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.patience.connect_seconds),
            headers={"User-Agent": "sandlot", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def may_carry(self, url: URL, *, credential: bool) -> bool:
        """Whether a URL is one to speak to; a credential never travels in the clear but to an insecure registry."""
        if url.scheme == "https":
            return True
        return url.scheme == "http" and self._trust.insecure and (not credential or url.host == self.origin.host)

    @asynccontextmanager
    async def get(
        self, url: URL, headers: Mapping[str, str], authorization: str | None = None, *, redirects: int = _REDIRECTS
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send a GET, following redirects; `authorization` goes to the origin of `url` and nowhere else.

        The body is not read further than the caller reads it. TransientError, ImageSourceError.
        """
        first = url.origin()
        for _ in range(redirects + 1):
            self._guard(url, first)
            own = {"Authorization": authorization} if authorization and url.origin() == first else {}
            response = await self._send(url, {**headers, **own})
            try:
                if response.status not in _REDIRECT_STATUS:
                    yield response
                    return
                url = _following(url, response)
            finally:
                response.close()
        raise unavailable(f"{first.host} sends on without end")

    def _guard(self, url: URL, first: URL) -> None:
        if not self.may_carry(url, credential=False) or url.user is not None or not url.host:
            raise unsafe(f"{first.host} sends on to what is no https address")
        address = literal(url.host)
        if address is not None and not permitted(address, self._trust, own=url.host == self.origin.host):
            raise self._forbidden(url)

    def _forbidden(self, url: URL) -> ImageSourceError:
        if url.host != self.origin.host:
            return unsafe(f"{self.origin.host} sends on to {url.host}, a private address or one of this machine")
        return unavailable(
            f"{self.origin.host} is at a private address; SANDLOT_PRIVATE_REGISTRIES names those that may be"
        )

    async def _send(self, url: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        if self._session is None:
            raise unavailable("the transport is closed")
        try:
            async with asyncio.timeout(self.patience.answer_seconds):
                return await self._session.get(url, headers=headers, allow_redirects=False)
        except aiohttp.ClientConnectorCertificateError as error:
            raise unavailable(f"{url.host} has no certificate that this machine trusts") from error
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ForbiddenAddressError):
                raise self._forbidden(url) from error
            if isinstance(error.os_error, ssl.SSLError):
                raise unavailable(f"{url.host} does not speak TLS as it should") from error
            raise TransientError(f"{url.host} cannot be reached: {error.os_error.strerror or 'no address'}") from error
        except aiohttp.ClientResponseError as error:
            raise unavailable(f"{url.host} answers with what is no proper HTTP") from error
        except TimeoutError as error:
            raise TransientError(f"{url.host} does not answer") from error
        except (aiohttp.InvalidURL, ValueError) as error:
            raise unsafe(f"{self.origin.host} sends on to an address that cannot be read") from error
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError(f"{url.host} broke the connection") from error


def _following(url: URL, response: aiohttp.ClientResponse) -> URL:
    location = response.headers.get("Location")
    if not location:
        raise unavailable(f"{url.host} sends on to nowhere")
    try:
        return url.join(URL(location, encoded=True)).with_fragment(None)
    except ValueError as error:
        raise unsafe(f"{url.host} sends on to an address that cannot be read") from error


async def read_all(response: aiohttp.ClientResponse, limit: int, seconds: float) -> bytes:
    """Read a body that must be short. ImageSourceError when it is not; TransientError when it breaks off."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise unavailable(f"{response.url.host} encodes what was asked for as it is")
    if (response.content_length or 0) > limit:
        raise too_large(f"{response.url.host} answers with {response.content_length} bytes; at most {limit} are read")
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in response.content.iter_chunked(_PIECE):
                data += piece
                if len(data) > limit:
                    raise too_large(f"{response.url.host} answers with more than {limit} bytes")
    except TimeoutError as error:
        raise TransientError(f"{response.url.host} takes too long") from error
    except (aiohttp.ClientError, OSError) as error:
        raise TransientError(f"{response.url.host} broke off") from error
    return bytes(data)
