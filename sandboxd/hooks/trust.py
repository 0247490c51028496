"""Trust: programs inside believe the project's authority, where the policy has the node speak for other hosts.

Nothing of the sandbox runs for it: files are read and written by the guest, as root. What cannot be written is the
sandbox's own loss: programs that do not believe the node refuse to speak, and no secret has gone anywhere.
"""

import asyncio
import posixpath
from collections.abc import AsyncIterator
from typing import Any, Final

import structlog

from sandboxd.contract.problems import ProblemError
from sandboxd.guest_client.base import Guest, GuestError
from sandboxd.guest_client.file_calls import Part, Target, WriteOptions
from sandboxd.hooks.base import NOTHING, FailPoints, Parts, unless_dead
from sandboxd.runtime.base import Runtime

AUTHORITY_FILE: Final = "/etc/sandlot/ca.pem"
"""The project's authority alone."""
BUNDLE_FILE: Final = "/etc/sandlot/ca-bundle.pem"
"""All that the image trusts, and the project's authority."""
SYSTEM_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
)
"""Where distributions keep what their programs trust; where there is one, the authority is put to it."""
VARIABLES: Final = {
    "SSL_CERT_FILE": BUNDLE_FILE,
    "REQUESTS_CA_BUNDLE": BUNDLE_FILE,
    "CURL_CA_BUNDLE": BUNDLE_FILE,
    "GIT_SSL_CAINFO": BUNDLE_FILE,
    "PIP_CERT": BUNDLE_FILE,
    "NODE_EXTRA_CA_CERTS": AUTHORITY_FILE,
}
"""For programs that bring a bundle of their own; the image's and the sandbox's own variables come before these."""

_MOST_BYTES: Final = 4 << 20
"""Of a bundle; a larger one is none."""
_MOST_LINKS: Final = 4
_ROOT: Final = "0"
_SECONDS: Final = 20.0

_log = structlog.get_logger(__name__)


class TrustHook:
    """Has the authority trusted before anything of the sandbox runs. Its files end with the sandbox."""

    name = "trust"
    steps = ("trust.install", "trust.installed")
    ready_steps = steps
    safe_after = NOTHING
    claims_after = frozenset({"launch", "guest"})

    def __init__(self, runtime: Runtime, points: FailPoints, *, authorities: str = "") -> None:
        """`authorities`: what is trusted in an image that has nothing of the kind."""
        self._runtime = runtime
        self._points = points
        self._authorities = authorities

    async def prepare(self, parts: Parts) -> None:
        await self._points.reach("trust.install")
        if parts.credentials is not None:
            await unless_dead(self._runtime, parts.handle, install(parts, self._authorities))
        await self._points.reach("trust.installed")

    async def make_ready(self, parts: Parts) -> None:
        """Whose it will be says whose authority."""

    async def claim(self, parts: Parts) -> None:
        await self.prepare(parts)

    async def recover(self, parts: Parts) -> None:
        """Leave what is there."""

    async def cleanup(self, parts: Parts) -> None:
        """Leave the files to the sandbox's end."""


async def install(parts: Parts, authorities: str) -> None:
    """Have the authority of a sandbox's credentials trusted inside, once; nothing where there are none.

    GuestUnreachableError.
    """
    credentials, guest = parts.credentials, parts.guest
    if credentials is None or guest is None or parts.trusted == credentials.ca_certificate:
        return
    try:
        async with asyncio.timeout(_SECONDS):
            await _install(guest, credentials.ca_certificate.strip() + "\n", authorities)
    except (ProblemError, GuestError, TimeoutError) as error:
        _log.warning("authority not installed", sandbox_id=parts.sandbox_id, error=f"{type(error).__name__}: {error}")
        return
    parts.trusted = credentials.ca_certificate


async def _install(guest: Guest, certificate: str, authorities: str) -> None:
    bundle: bytes | None = None
    for path in SYSTEM_BUNDLES:
        content = await _extended(guest, path, certificate.encode())
        bundle = bundle or content
    await _write(guest, AUTHORITY_FILE, certificate.encode())
    await _write(guest, BUNDLE_FILE, bundle or f"{authorities}\n{certificate}".encode())


async def _extended(guest: Guest, path: str, certificate: bytes) -> bytes | None:
    """Put a certificate to a bundle, unless it is there; return all of it. None: there is no such bundle."""
    try:
        place = await _followed(guest, path)
        content = await _read(guest, place)
        if certificate in content:
            return content
        content = content.rstrip(b"\n") + b"\n" + certificate
        await _write(guest, place, content)
    except ProblemError:
        return None
    return content


async def _followed(guest: Guest, path: str) -> str:
    """Return where a path's links lead: what is written replaces a name, and is not to replace a link."""
    for _ in range(_MOST_LINKS):
        seen = await guest.files.stat(Target(path.encode(), _ROOT), follow=False)
        link: Any = seen.get("symlink_target")
        if seen.get("type") != "symlink" or not isinstance(link, str):
            return path
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    raise ProblemError("file_not_found", "links without an end")


async def _read(guest: Guest, path: str) -> bytes:
    async with guest.files.read(Target(path.encode(), _ROOT), Part(), None) as content:
        if content.length is None or content.length > _MOST_BYTES or content.pieces is None:
            raise ProblemError("file_not_found", "no bundle")
        data = bytearray()
        async for piece in content.pieces:
            data += piece
            if len(data) > _MOST_BYTES:
                raise GuestError("more than it said")
        return bytes(data)


async def _write(guest: Guest, path: str, content: bytes) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield content

    await guest.files.write(Target(path.encode(), _ROOT), body(), WriteOptions(length=len(content)))
