# Derived from _async by unasync.py: change it there.
"""The files of a sandbox: whole ones, streams, trees, and what changes."""

import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Final

from sandlot._clock import in_thread, sleep, steps
from sandlot._file_calls import ReadState, already_exists, file_query, path_field, permission_body
from sandlot._sync.route import Route
from sandlot._trees import Progress, Unpacker, pack, packed_bytes, pieces
from sandlot.descriptions import ArchiveSummary, FileEvent, FileInfo
from sandlot.errors import ApiError, FileChangedError, FileMissingError, InvalidRequestError, UnreachableError
from sandlot.retries import Patience

_SPOOL_BYTES: Final = 16 * 1024 * 1024
_PRECONDITION_FAILED: Final = 412
_TAR: Final = "application/x-tar"


class Files:
    """Files by path: absolute, or from the sandbox's working directory. `user` acts with that user's rights.

    `sandbox.files` has them with the sandbox's user.
    """

    def __init__(self, route: Route, user: str | None = None) -> None:
        self._route = route
        self._user = user

    def as_user(self, user: str) -> "Files":
        """Return the same files, seen and touched by another user inside."""
        return Files(self._route, user)

    def read(self, path: str) -> bytes:
        """Return a whole file. Raises FileMissingError, FileConflictError for a directory, PermissionDeniedError."""
        with closing(self.stream(path)) as parts:
            return b"".join([part for part in parts])

    def read_text(self, path: str, encoding: str = "utf-8") -> str:
        """Return a whole file as text."""
        return (self.read(path)).decode(encoding)

    def stream(self, path: str, *, start: int = 0, progress: Progress | None = None) -> Generator[bytes, None]:
        """Yield a file's bytes from `start`, going on where a broken connection left it.

        Raises FileChangedError when it became another file meanwhile.
        """
        state = ReadState(start)
        patience = Patience(self._route.client.retries)
        query = file_query(path, self._user)
        while True:
            try:
                with self._route.stream("/files", query=query, more_headers=state.headers()) as response:
                    state.begin(response.status_code, response.headers)
                    for data in response.iter_bytes():
                        patience.progress()
                        state.position += len(data)
                        yield data
                        if progress is not None:
                            progress(state.position, state.total)
                if state.is_whole:
                    return
                error: ApiError | UnreachableError = UnreachableError("the file ended before its size was reached")
            except (ApiError, UnreachableError) as caught:
                if state.is_at_end(caught):
                    return
                error = caught
            delay = patience.next_delay(error, repeatable=True)
            if delay is None:
                raise error
            sleep(delay)

    def write(
        self,
        path: str,
        data: bytes | str,
        *,
        mode: str | int | None = None,
        append: bool = False,
        parents: bool = True,
        only_new: bool = False,
        if_match: str | None = None,
    ) -> FileInfo:
        """Write a whole file: what was there is replaced in one step, or stays as it was.

        `only_new` refuses to replace (FileConflictError); `if_match` replaces only the file with that `etag`. `append`
        adds at the end, and is never tried again when its answer is lost, since it would add twice.
        """
        content = data.encode() if isinstance(data, str) else data
        try:
            return self._put(
                path,
                mode=mode,
                append=append,
                parents=parents,
                content=content,
                more_headers=_conditions(only_new=only_new, if_match=if_match),
                repeatable=not append and not only_new,
            )
        except InvalidRequestError as error:
            if only_new and error.status == _PRECONDITION_FAILED:
                raise already_exists(path) from error
            raise

    def write_stream(
        self,
        path: str,
        source: Callable[[], Iterator[bytes]],
        *,
        total_bytes: int | None = None,
        mode: str | int | None = None,
        progress: Progress | None = None,
    ) -> FileInfo:
        """Write what `source()` yields. It is called again for each try, so it must start from the beginning."""
        watched = _watched(source, total_bytes, progress)
        return self._put(path, mode=mode, content=watched, content_bytes=total_bytes)

    def upload(
        self,
        local: str | os.PathLike[str],
        path: str,
        *,
        exclude: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> FileInfo | ArchiveSummary:
        """Send a file to be `path`, or what is in a directory to be in `path`.

        Links are sent as links. `exclude` are patterns such as `*.pyc` or `node_modules`, for directories. Modes are
        kept, owners are not.
        """
        source = Path(local)
        if in_thread(source.is_dir):
            return self._upload_tree(source, path, exclude, progress)
        found = in_thread(source.stat)
        mode = found.st_mode & 0o777
        file: IO[bytes] = in_thread(open, source, "rb")
        try:

            def content() -> Iterator[bytes]:
                file.seek(0)
                return steps(pieces(file, found.st_size))

            return self.write_stream(path, content, total_bytes=found.st_size, mode=mode, progress=progress)
        finally:
            file.close()

    def download(
        self,
        path: str,
        local: str | os.PathLike[str],
        *,
        exclude: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Path:
        """Fetch a file to be `local`, or what is in a directory to be in `local`. Returns where it is.

        A file is written aside and then renamed. Of a directory nothing is written outside `local`, whatever the
        sandbox sends: UnsafeArchiveError.
        """
        target = Path(local)
        info = self.stat(path)
        if info.is_directory:
            self._download_tree(path, target, exclude, progress)
            return target
        if in_thread(target.is_dir):
            target = target / info.name
        aside = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            file: IO[bytes] = in_thread(open, aside, "wb")
            with file:
                self._fetch(path, file, progress)
            mode = int(info.mode, 8) & 0o777 if info.mode else 0o644
            in_thread(aside.chmod, mode)
            in_thread(aside.replace, target)
        finally:
            aside.unlink(missing_ok=True)
        return target

    def stat(self, path: str, *, follow: bool = True) -> FileInfo:
        """Describe what is at `path`, or the link itself if `follow` is False. Raises FileMissingError."""
        query = file_query(path, self._user) | ({} if follow else {"follow": False})
        return FileInfo.parse(self._route.call("GET", "/files/stat", query=query))

    def exists(self, path: str) -> bool:
        """Tell whether something is at `path`."""
        try:
            self.stat(path, follow=False)
        except FileMissingError:
            return False
        return True

    def list(self, path: str = ".", *, depth: int = 1) -> "list[FileInfo]":
        """Return what is in a directory, sorted by path; `depth` levels of it."""
        with closing(self.iterate(path, depth=depth)) as entries:
            return [entry for entry in entries]

    def iterate(self, path: str = ".", *, depth: int = 1) -> Generator[FileInfo, None]:
        """Yield what is in a directory, page after page, however much that is."""
        query = file_query(path, self._user) | {"depth": depth}
        with closing(self._route.pages("/directories", query)) as items:
            for item in items:
                yield FileInfo.parse(item)

    def make_directory(self, path: str, *, mode: str | int | None = None, parents: bool = True) -> None:
        """Make a directory; one that is there already is left as it is."""
        body = file_query(path, self._user, mode=mode) | {"parents": parents}
        self._route.call("PUT", "/directories", body=body)

    def move(self, source: str, target: str, *, overwrite: bool = False) -> FileInfo:
        """Rename. FileConflictError if `target` is there, unless `overwrite`.

        Not tried again when its answer is lost: then it may be done already.
        """
        body: dict[str, Any] = path_field(source, "from") | path_field(target, "to") | {"overwrite": overwrite}
        if self._user is not None:
            body["user"] = self._user
        return FileInfo.parse(self._route.call("POST", "/files/move", body=body, repeatable=False))

    def remove(self, path: str, *, recursive: bool = False, missing_ok: bool = False) -> None:
        """Remove a file, a link, or a directory: an empty one unless `recursive`."""
        query = file_query(path, self._user) | {"recursive": recursive, "missing_ok": missing_ok}
        self._route.call("DELETE", "/files", query=query, absence_is_success=True)

    def set_permissions(
        self,
        path: str,
        *,
        mode: str | int | None = None,
        owner: str | None = None,
        group: str | None = None,
        recursive: bool = False,
    ) -> FileInfo:
        """Change mode (`"0644"` or `0o644`), owner and group: chmod and chown."""
        body = permission_body(path, self._user, mode=mode, owner=owner, group=group, recursive=recursive)
        return FileInfo.parse(self._route.call("PATCH", "/files", body=body))

    def watch(self, path: str = ".", *, recursive: bool = True) -> Generator[FileEvent, None]:
        """Yield changes below `path`, first `ready` once none will be missed.

        A watch cannot be resumed: after a break it is opened again and yields `overflow` in place of what was
        missed, which says: look again.
        """
        query = file_query(path, self._user) | {"recursive": recursive}
        patience = Patience(self._route.client.retries)
        was_ready = False
        while True:
            error: ApiError | UnreachableError = UnreachableError("the watch ended")
            try:
                with closing(self._route.lines("/watch", query)) as lines:
                    for line in lines:
                        event = FileEvent.parse(line)
                        patience.progress()
                        if event.kind == "ready" and was_ready:
                            event = FileEvent("overflow", None, None, is_directory=False, at=event.at)
                        was_ready = True
                        if event.kind != "keepalive":
                            yield event
            except (ApiError, UnreachableError) as caught:
                error = caught
            delay = patience.next_delay(error, repeatable=True)
            if delay is None:
                raise error
            sleep(delay)

    def read_archive(
        self,
        path: str,
        *,
        exclude: Sequence[str] = (),
        format: str = "tar",  # noqa: A002 - the API's name for it
    ) -> Generator[bytes, None]:
        """Yield a tar of what is below `path`. UnreachableError when it is cut short: that cannot be resumed."""
        query: dict[str, Any] = file_query(path, self._user) | {"format": format}
        if exclude:
            query["exclude"] = [*exclude]
        with self._route.stream("/archive", query=query, accept=_TAR) as response:
            for data in response.iter_bytes():
                yield data

    def write_archive(
        self,
        path: str,
        source: Callable[[], Iterator[bytes]],
        *,
        format: str = "tar",  # noqa: A002 - the API's name for it
        strip_components: int = 0,
        overwrite: bool = True,
        total_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> ArchiveSummary:
        """Unpack a tar inside the sandbox, below `path`. `source` is called again for each try."""
        query = file_query(path, self._user) | {"format": format}
        query |= {"strip_components": strip_components, "overwrite": overwrite}
        answer = self._route.call(
            "PUT",
            "/archive",
            query=query,
            content=_watched(source, total_bytes, progress),
            content_type=_TAR,
            repeatable=overwrite,
        )
        return ArchiveSummary.parse(answer)

    def _put(self, path: str, *, mode: str | int | None, **request: Any) -> FileInfo:
        query = file_query(path, self._user, mode=mode)
        query |= {name: request.pop(name) for name in ("append", "parents") if name in request}
        return FileInfo.parse(self._route.call("PUT", "/files", query=query, **request))

    def _upload_tree(self, root: Path, path: str, exclude: Sequence[str], progress: Progress | None) -> ArchiveSummary:
        total = in_thread(packed_bytes, root, exclude)
        self.make_directory(path)
        return self.write_archive(path, lambda: steps(pack(root, exclude)), total_bytes=total, progress=progress)

    def _download_tree(self, path: str, root: Path, exclude: Sequence[str], progress: Progress | None) -> None:
        patience = Patience(self._route.client.retries)
        while True:
            with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as file:
                try:
                    done = 0
                    with closing(self.read_archive(path, exclude=exclude)) as parts:
                        for data in parts:
                            in_thread(file.write, data)
                            done += len(data)
                            if progress is not None:
                                progress(done, None)
                    in_thread(file.seek, 0)
                    in_thread(Unpacker(root).unpack, file)
                    return  # noqa: TRY300 - the way out of the loop
                except UnreachableError as error:
                    delay = patience.next_delay(error, repeatable=True)
                    if delay is None:
                        raise
            sleep(delay)

    def _fetch(self, path: str, file: IO[bytes], progress: Progress | None) -> None:
        """Write a file's bytes to `file`; from the beginning if it became another one meanwhile."""
        for last in (False, False, True):
            try:
                with closing(self.stream(path, progress=progress)) as parts:
                    for data in parts:
                        in_thread(file.write, data)
                return  # noqa: TRY300 - the way out of the loop
            except FileChangedError:  # noqa: PERF203 - three turns
                if last:
                    raise
                file.seek(0)
                file.truncate()


def _watched(
    source: Callable[[], Iterator[bytes]], total: int | None, progress: Progress | None
) -> Callable[[], Iterator[bytes]]:
    """Return a source that tells how far it came."""
    if progress is None:
        return source

    def watched() -> Generator[bytes, None]:
        done = 0
        progress(done, total)
        for data in source():
            yield data
            done += len(data)
            progress(done, total)

    return watched


def _conditions(*, only_new: bool, if_match: str | None) -> Mapping[str, str]:
    headers = {"If-None-Match": "*"} if only_new else {}
    return headers | ({} if if_match is None else {"If-Match": if_match})
