"""A registry over the distribution API: manifests and blobs of one repository, every byte compared with its digest."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import aiohttp
from yarl import URL

from sandboxd.images.addresses import Trust
from sandboxd.images.challenges import parse_challenges, parse_retry_after
from sandboxd.images.failures import ImageReason, ImageSourceError, corrupt, not_found, unauthorized, unavailable
from sandboxd.images.manifests import INDEXES, MANIFEST_LIMIT, MANIFESTS, Descriptor, check, digest_of
from sandboxd.images.partial import Moved, PartialFile
from sandboxd.images.threads import in_thread
from sandboxd.images.tokens import Admission, Credential
from sandboxd.images.transport import Patience, TransientError, Transport, read_all

T = TypeVar("T")

_ENDPOINTS: Final = {"docker.io": "registry-1.docker.io"}
_ACCEPTED: Final = ", ".join(sorted(MANIFESTS | INDEXES))
_PIECE: Final = 1024 * 1024
_PROGRESS: Final = 1024 * 1024
"""New bytes after which a break no longer counts against a download."""


class Registry:
    """One repository of one registry, or of a mirror of it."""

    def __init__(
        self,
        host: str,
        repository: str,
        *,
        trust: Trust | None = None,
        credential: Credential | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.host = host
        self._patience = patience or Patience()
        self._transport = Transport(_ENDPOINTS.get(host, host), trust or Trust(), self._patience)
        self._base = URL(f"{self._transport.origin}/v2/{repository}/", encoded=True)
        self._admission = Admission(self._transport, repository, credential)

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def manifest(self, wanted: str) -> tuple[bytes, str | None]:
        """Fetch what a tag or digest names; return its bytes, checked, and what the registry calls it."""
        return await self._retrying(lambda: self._manifest(wanted))

    async def document(self, descriptor: Descriptor, limit: int) -> bytes:
        """Fetch a small blob into memory, checked."""
        return await self._retrying(lambda: self._document(descriptor, limit))

    async def blob(self, descriptor: Descriptor, directory: Path, moved: Moved) -> Path:
        """Fetch a blob into `directory`, going on where an earlier try ended; return the checked file."""
        part = PartialFile(directory, descriptor, moved)
        try:
            if not await in_thread(part.open):
                await self._fill(part, descriptor)
        finally:
            await in_thread(part.close)
        return part.target

    async def _manifest(self, wanted: str) -> tuple[bytes, str | None]:
        async with self._open(f"manifests/{wanted}", {"Accept": _ACCEPTED}) as response:
            data = await read_all(response, MANIFEST_LIMIT, self._patience.document_seconds)
            stated = response.headers.get("Docker-Content-Digest")
            said = response.headers.get("Content-Type", "").partition(";")[0].strip().lower() or None
        if wanted.startswith("sha256:"):
            check(data, wanted, f"manifest of {self.host}")
        elif stated is not None and stated.startswith("sha256:") and stated != digest_of(data):
            raise corrupt(f"{self.host} sends a manifest that is not {stated[:80]}, as it says itself")
        return data, said

    async def _document(self, descriptor: Descriptor, limit: int) -> bytes:
        async with self._open(f"blobs/{descriptor.digest}", {}) as response:
            data = await read_all(response, min(limit, descriptor.size), self._patience.document_seconds)
        if len(data) < descriptor.size:
            raise TransientError(f"{self.host} broke off")
        check(data, descriptor.digest, f"blob of {self.host}")
        return data

    async def _fill(self, part: PartialFile, descriptor: Descriptor) -> None:
        best, idle = part.size, 0
        while True:
            pieced = part.size > 0
            try:
                if part.size < descriptor.size:
                    await self._stretch(part, descriptor)
                return await in_thread(part.finish)
            except TransientError as error:
                idle = 0 if part.size - best >= _PROGRESS else idle + 1
                await self._pause(idle, error)
            except ImageSourceError as error:
                # What was put together from several stretches is tried once more in one.
                if error.reason is not ImageReason.CORRUPT or not (pieced or part.pieced):
                    raise
                await in_thread(part.restart)
                best = descriptor.size
            best = max(best, part.size)

    async def _stretch(self, part: PartialFile, descriptor: Descriptor) -> None:
        """Read from where the file ends to where the answer ends, which must be the end of the blob."""
        headers = {"Range": f"bytes={part.size}-"} if part.size else {}
        async with self._open(f"blobs/{descriptor.digest}", headers) as response:
            if part.size and response.status == 200:
                await in_thread(part.restart)
            _check_answer(response, part.size, descriptor)
            await self._read(response, part)
        if part.size < descriptor.size:
            raise TransientError(f"{self.host} broke off")

    async def _read(self, response: aiohttp.ClientResponse, part: PartialFile) -> None:
        loop = asyncio.get_running_loop()
        window, pending, came = self._patience.window_seconds, bytearray(), 0
        try:
            async with asyncio.timeout(window) as watch:
                async for piece in response.content.iter_any():
                    pending += piece
                    came += len(piece)
                    if len(pending) >= _PIECE:
                        data = bytes(pending)
                        pending.clear()
                        await in_thread(lambda data=data: part.write(data))
                    if came >= self._patience.window_bytes:
                        watch.reschedule(loop.time() + window)
                        came = 0
        except TimeoutError as error:
            raise TransientError(f"{self.host} is too slow") from error
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError(f"{self.host} broke off") from error
        finally:
            await in_thread(lambda: part.write(bytes(pending)))

    @asynccontextmanager
    async def _open(self, path: str, headers: Mapping[str, str]) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send a request, getting in first where that is asked for; the answer is one that was hoped for."""
        url = self._base.join(URL(path, encoded=True))
        async with AsyncExitStack() as stack:
            sent = self._admission.header
            response = await stack.enter_async_context(self._transport.get(url, headers, sent))
            if response.status == 401 and response.url.origin() == url.origin():
                challenges = parse_challenges(", ".join(response.headers.getall("WWW-Authenticate", [])))
                await stack.aclose()
                await self._admission.renew(sent, challenges)
                response = await stack.enter_async_context(self._transport.get(url, headers, self._admission.header))
            self._check_status(response)
            yield response

    def _check_status(self, response: aiohttp.ClientResponse) -> None:
        status, host = response.status, response.url.host
        if status in (200, 206):
            return
        if status in (401, 403):
            raise unauthorized(f"{host} does not give this image to these credentials, or to none (status {status})")
        if status == 404:
            raise not_found(f"{host} has no such image, or a part of it is missing")
        if status in (408, 425, 429) or status >= 500:
            wait = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
            if wait is not None and wait > self._patience.longest_wait_seconds:
                raise unavailable(f"{host} answers {status}, and asks to wait for {wait:.0f} s")
            raise TransientError(f"{host} answers {status}", wait)
        raise unavailable(f"{host} answers {status}")

    async def _retrying(self, act: Callable[[], Awaitable[T]]) -> T:
        tries = 0
        while True:
            try:
                return await act()
            except TransientError as error:
                tries += 1
                await self._pause(tries, error)

    async def _pause(self, tries: int, error: TransientError) -> None:
        """Wait before another try. ImageSourceError after too many."""
        patience = self._patience
        if tries >= patience.attempts:
            raise unavailable(f"{error} (tried {tries} times)") from error
        backoff = min(patience.backoff_seconds * 2 ** max(tries - 1, 0), patience.longest_backoff_seconds)
        jitter = random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing
        await asyncio.sleep(max(error.wait or 0, backoff * jitter))


def _check_answer(response: aiohttp.ClientResponse, offset: int, descriptor: Descriptor) -> None:
    """Compare what an answer says of itself with what was asked for. ImageSourceError."""
    host = response.url.host
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise corrupt(f"{host} encodes {descriptor.digest}, which was asked for as it is")
    if (response.status == 206) != (offset > 0):
        raise corrupt(f"{host} sends a part of {descriptor.digest} that was not asked for")
    said = response.headers.get("Content-Range", "")
    if offset and not said.startswith(f"bytes {offset}-"):
        raise corrupt(f"{host} sends another part of {descriptor.digest} than was asked for")
    length = response.content_length
    if length is not None and offset + length != descriptor.size:
        raise corrupt(f"{host} says that {descriptor.digest} has {offset + length} bytes, not {descriptor.size}")
