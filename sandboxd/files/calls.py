"""The calls on files that answer whole: look, write, change, remove, move, make, extract."""

from collections.abc import AsyncIterator

from sandboxd.contract.files import ArchiveResult, FileInfo
from sandboxd.files.trust import check_archive, check_file
from sandboxd.guest_client.file_calls import ExtractOptions, Target, WriteOptions
from sandboxd.processes.live import LiveSandbox, guarded


async def stat(sandbox: LiveSandbox, target: Target, *, follow: bool) -> FileInfo:
    """Describe a file."""
    async with guarded(sandbox):
        return check_file(await sandbox.guest.files.stat(target, follow=follow))


async def readable(sandbox: LiveSandbox, target: Target) -> FileInfo:
    """Describe a file that could be read."""
    async with guarded(sandbox):
        return check_file(await sandbox.guest.files.readable(target))


async def write(
    sandbox: LiveSandbox, target: Target, body: AsyncIterator[bytes], options: WriteOptions
) -> tuple[FileInfo, bool]:
    """Write a file, whole; whether it is new."""
    async with guarded(sandbox):
        answer, new = await sandbox.guest.files.write(target, body, options)
        return check_file(answer), new


async def change(sandbox: LiveSandbox, target: Target, changes: dict[str, str], *, recursive: bool) -> FileInfo:
    """Change mode, owner, group and time."""
    async with guarded(sandbox):
        return check_file(await sandbox.guest.files.change(target, changes, recursive=recursive))


async def remove(sandbox: LiveSandbox, target: Target, *, recursive: bool, missing_ok: bool) -> None:
    """Remove a file or a directory."""
    async with guarded(sandbox):
        await sandbox.guest.files.remove(target, recursive=recursive, missing_ok=missing_ok)


async def move(sandbox: LiveSandbox, target: Target, to: bytes, *, overwrite: bool) -> FileInfo:
    """Give a file another name."""
    async with guarded(sandbox):
        return check_file(await sandbox.guest.files.move(target, to, overwrite=overwrite))


async def make_directory(
    sandbox: LiveSandbox, target: Target, mode: str | None, *, parents: bool
) -> tuple[FileInfo, bool]:
    """Make a directory; whether it is new."""
    async with guarded(sandbox):
        answer, new = await sandbox.guest.files.make_directory(target, mode, parents=parents)
        return check_file(answer), new


async def unpack(
    sandbox: LiveSandbox, target: Target, body: AsyncIterator[bytes], options: ExtractOptions
) -> ArchiveResult:
    """Extract an archive below a directory."""
    async with guarded(sandbox):
        return check_archive(await sandbox.guest.files.unpack(target, body, options))
