"""What streams out of a guest: content, listings, archives, watches. Held nowhere, checked where it has a form."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

from pydantic_core import to_json

from sandboxd.contract.files import FileEvent, FileInfo
from sandboxd.files.trust import Span, check_content, check_event_line, check_file_line, check_more
from sandboxd.guest_client.base import GuestError, GuestUnreachableError
from sandboxd.guest_client.file_calls import Part, Target
from sandboxd.processes.live import LiveSandbox, failed, guarded


class StreamBrokenError(Exception):
    """A stream that had begun cannot be finished. It must not look whole."""


@asynccontextmanager
async def _unbroken(sandbox: LiveSandbox) -> AsyncGenerator[None]:
    """Read a stream that has been opened: from now on nothing can be answered instead of it."""
    try:
        yield
    except GuestUnreachableError as error:
        raise StreamBrokenError from error
    except GuestError as error:
        raise StreamBrokenError from failed(sandbox, error)


@asynccontextmanager
async def open_content(
    sandbox: LiveSandbox, target: Target, part: Part, unless: str | None
) -> AsyncGenerator[tuple[Span, AsyncGenerator[bytes] | None]]:
    """Open a file. None instead of its content when it is unchanged."""
    async with guarded(sandbox), sandbox.guest.files.read(target, part, unless) as content:
        span = check_content(content)
        yield span, None if content.pieces is None else _exactly(sandbox, content.pieces, span.length)


async def _exactly(sandbox: LiveSandbox, pieces: AsyncGenerator[bytes], length: int) -> AsyncGenerator[bytes]:
    left = length
    async with _unbroken(sandbox), aclosing(pieces):
        async for data in pieces:
            left -= len(data)
            if left < 0:
                raise GuestError("the guest sends more than it promised")
            yield data
        if left:
            raise GuestUnreachableError("the content broke off before its end")


@asynccontextmanager
async def open_archive(
    sandbox: LiveSandbox, target: Target, archive_format: str, exclude: list[str]
) -> AsyncGenerator[AsyncGenerator[bytes]]:
    """Open an archive."""
    async with guarded(sandbox), sandbox.guest.files.pack(target, archive_format, exclude) as pieces:
        yield _all(sandbox, pieces)


async def _all(sandbox: LiveSandbox, pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with _unbroken(sandbox), aclosing(pieces):
        async for data in pieces:
            yield data


async def page(
    sandbox: LiveSandbox, target: Target, *, depth: int, limit: int, after: bytes
) -> tuple[list[FileInfo], bool]:
    """Return so many entries of a directory behind a path below it, and whether there are more."""
    found: list[FileInfo] = []
    async with guarded(sandbox), _listing(sandbox, target, depth=depth, limit=limit, after=after) as lines:
        end: bytes | None = None
        async for some in lines:
            for line in some:
                if end is not None:
                    found.append(check_file_line(end))
                    if len(found) > limit:
                        raise GuestError("the guest lists more than it was asked for")
                end = line
        if end is None:
            raise GuestError("the guest's listing has no end")
        more = check_more(end)
        if more and not found:
            raise GuestError("the guest has more, but nothing to show of it")
        return found, more


def _listing(
    sandbox: LiveSandbox, target: Target, *, depth: int, limit: int, after: bytes
) -> AbstractAsyncContextManager[AsyncGenerator[list[bytes]]]:
    return sandbox.guest.files.listing(target, depth=depth, limit=limit, after=after)


@asynccontextmanager
async def open_listing(sandbox: LiveSandbox, target: Target, depth: int) -> AsyncGenerator[AsyncGenerator[bytes]]:
    """Open a whole directory, as NDJSON."""
    async with guarded(sandbox), _listing(sandbox, target, depth=depth, limit=0, after=b"") as lines:
        yield _rows(sandbox, lines)


async def _rows(sandbox: LiveSandbox, lines: AsyncGenerator[list[bytes]]) -> AsyncGenerator[bytes]:
    end: bytes | None = None
    async with _unbroken(sandbox), aclosing(lines):
        async for some in lines:
            if end is not None:
                some.insert(0, end)
            end = some.pop() if some else None
            if some:
                yield b"".join([render(check_file_line(line)) for line in some])
        if end is None or check_more(end):
            raise GuestError("the guest's listing has no end")


def render(value: FileInfo | FileEvent) -> bytes:
    """Write one line of NDJSON."""
    return to_json(value, exclude_none=True) + b"\n"


@asynccontextmanager
async def open_watch(
    sandbox: LiveSandbox, target: Target, *, recursive: bool
) -> AsyncGenerator[AsyncGenerator[list[FileEvent]]]:
    """Open a watch."""
    async with guarded(sandbox), sandbox.guest.files.watch(target, recursive=recursive) as lines:
        yield _events(sandbox, lines)


async def _events(sandbox: LiveSandbox, lines: AsyncGenerator[list[bytes]]) -> AsyncGenerator[list[FileEvent]]:
    async with _unbroken(sandbox), aclosing(lines):
        async for some in lines:
            if some:
                yield [check_event_line(line) for line in some]
