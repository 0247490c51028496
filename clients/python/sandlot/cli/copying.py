"""cp: files and trees, both ways, and streams."""

import os
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final

import typer
from anyio import to_thread
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sandlot._async.client import AsyncClient
from sandlot._async.files import AsyncFiles
from sandlot._async.sandbox import AsyncSandbox
from sandlot._trees import Progress as Watcher
from sandlot.cli import options, show
from sandlot.cli.work import do
from sandlot.descriptions import ArchiveSummary, FileInfo
from sandlot.errors import FileMissingError

_PIECE_BYTES: Final = 256 * 1024
_STREAM: Final = "-"


def cp(
    source: Annotated[str, typer.Argument(help="PATH, SANDBOX:PATH, or - for standard input.")],
    target: Annotated[str, typer.Argument(help="PATH, SANDBOX:PATH, or - for standard output.")],
    *,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="PATTERN", help="What to leave out of a directory.")
    ] = None,
    user: options.User = None,
    archive: Annotated[bool, typer.Option("--archive", help="The stream - is a tar, of a directory inside.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: options.Json = False,
) -> None:
    """Copy files and directories into a sandbox, or out of it.

    A directory that is there already gets the copy inside it, under its own name; else the copy has the name of the
    target. `DIRECTORY/.` means what is in it.
    """
    there, here = _remote(target), _remote(source)
    if (there is None) == (here is None):
        raise typer.BadParameter("one of the two must be SANDBOX:PATH", param_hint="SOURCE TARGET")

    async def work(client: AsyncClient) -> dict[str, Any] | None:
        name, path = there or here or ("", "")
        files = (await AsyncSandbox.connect(name, client=client)).files
        copy = _Copy(files if user is None else files.as_user(user), exclude or [], archive=archive)
        with _shown(Path(source).name or source, quiet=quiet or _STREAM in {source, target}) as watch:
            return await (copy.into(source, path, watch) if there else copy.out(path, target, watch))

    done = do(work, as_json=as_json)
    if as_json and done is not None:
        show.print_json(done)


class _Copy:
    """One copy, with what was asked of all of them."""

    def __init__(self, files: AsyncFiles, exclude: list[str], *, archive: bool) -> None:
        self._files = files
        self._exclude = exclude
        self._archive = archive

    async def into(self, source: str, path: str, watch: Watcher | None) -> dict[str, Any]:
        """Copy from here, and return what is there now."""
        if source == _STREAM:
            return show.plain(await self._stream_in(path))
        local = Path(source)
        if not local.exists() and not local.is_symlink():
            raise FileNotFoundError(2, "No such file or directory", source)
        only_content = local.is_dir() and source.rstrip("/").endswith("/.")
        if not only_content and (path.endswith("/") or await self._is_directory(path)):
            path = str(PurePosixPath(path) / local.resolve().name)
        done = await self._files.upload(local, path, exclude=self._exclude, progress=watch)
        return {"path": path} | show.plain(done)

    async def out(self, path: str, target: str, watch: Watcher | None) -> dict[str, Any] | None:
        """Copy to here, and return what is here now; nothing where it went to a stream."""
        if target == _STREAM:
            await self._stream_out(path)
            return None
        local = Path(target)
        info = await self._files.stat(path)
        if info.is_directory and local.is_dir() and not path.rstrip("/").endswith("/."):
            local /= info.name
        elif info.is_file and target.endswith("/"):
            local.mkdir(parents=True, exist_ok=True)
        return {"path": str(await self._files.download(path, local, exclude=self._exclude, progress=watch))}

    async def _is_directory(self, path: str) -> bool:
        try:
            return (await self._files.stat(path)).is_directory
        except FileMissingError:
            return False

    async def _stream_in(self, path: str) -> FileInfo | ArchiveSummary:
        """Send standard input. It can be read once only, so a break in the middle is an error."""
        used = False

        async def read() -> AsyncGenerator[bytes, None]:
            nonlocal used
            if used:
                raise OSError(5, "the connection broke, and standard input cannot be read again")
            used = True
            while data := await to_thread.run_sync(os.read, 0, _PIECE_BYTES):
                yield data

        if self._archive:
            return await self._files.write_archive(path, read)
        return await self._files.write_stream(path, read)

    async def _stream_out(self, path: str) -> None:
        parts = self._files.read_archive(path, exclude=self._exclude) if self._archive else self._files.stream(path)
        async with aclosing(parts) as stream:
            async for data in stream:
                await to_thread.run_sync(_write, data)


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


def _remote(text: str) -> tuple[str, str] | None:
    """Return sandbox and path of SANDBOX:PATH; None for a path of this machine.

    >>> _remote("box:/srv"), _remote("./a:b"), _remote("-"), _remote("box:")
    (('box', '/srv'), None, None, ('box', '.'))
    """
    name, colon, path = text.partition(":")
    if not colon or not name or "/" in name or name.startswith("."):
        return None
    return name, path or "."


@contextmanager
def _shown(what: str, *, quiet: bool) -> Generator[Watcher | None, None, None]:
    """Show how far it came, where somebody looks."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=show.console_for_people(), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
