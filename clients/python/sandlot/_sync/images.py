# Derived from _async by unasync.py: change it there.
"""The images of a project: made, found, named, removed."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Final

from sandlot import _context
from sandlot._clock import in_thread, sleep
from sandlot._commands import segment
from sandlot._context import Files
from sandlot._lines import NDJSON, LineReader
from sandlot._requests import Request
from sandlot.errors import NotFoundError, UnreachableError
from sandlot.ids import new_idempotency_key
from sandlot.images import Image, ImageFailedError, ImageInfo, ImageTag, part_of, sum_of
from sandlot.models import as_object, as_objects
from sandlot.retries import Patience

if TYPE_CHECKING:
    from sandlot._sync.client import Client

Watcher = Callable[[ImageInfo], None]
UploadWatcher = Callable[[int, "int | None"], None]
LineWatcher = Callable[[dict[str, Any]], None]
_PART_BYTES: Final = 8 * 1024 * 1024
_WAIT_SECONDS: Final = 5
"""Between two looks at how far it is."""
_MARGIN_SECONDS: Final = 30.0


class Images:
    """The images that the key's project may start from."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def make(
        self,
        image: Image,
        *,
        tags: Sequence[str] = (),
        visibility: str | None = None,
        metadata: Mapping[str, str] | None = None,
        wait: bool = True,
        progress: Watcher | None = None,
        uploaded: UploadWatcher | None = None,
        said: LineWatcher | None = None,
    ) -> ImageInfo:
        """Make an image and wait until it is ready; `progress` is told of it meanwhile. ImageFailedError.

        A retry never makes a second one. An archive or a build's files are uploaded before, from where an earlier try
        ended. `said` is told each line of the log while it is written.
        """
        source = {kind: dict(value) for kind, value in image.source.items()}
        if image.archive is not None:
            source["archive"]["upload"] = self.upload(image.archive, progress=uploaded)
        if image.files:
            source["build"]["context"] = self._upload_files(image.files, uploaded)
        given: dict[str, Any] = {
            "tags": list(tags) or None,
            "visibility": visibility,
            "metadata": dict(metadata) if metadata else None,
            "config": dict(image.config) or None,
        }
        body = source | {name: value for name, value in given.items() if value is not None}
        request = Request("POST", "/v1/images", body=body, idempotency_key=new_idempotency_key())
        info = ImageInfo.parse(self._client.call(request))
        if said is not None and wait:
            with closing(self.log(info.id, follow=True)) as lines:
                for line in lines:
                    said(line)
        return self.wait(info.id, progress=progress) if wait else info

    def pull(self, reference: str, *, tags: Sequence[str] = (), progress: Watcher | None = None) -> ImageInfo:
        """Fetch the image of a reference anew and wait until it is ready. ImageFailedError."""
        return self.make(Image.from_registry(reference), tags=tags, progress=progress)

    def wait(self, image_id: str, *, progress: Watcher | None = None) -> ImageInfo:
        """Wait until an image is ready. ImageFailedError when it never will be."""
        while True:
            info = self.get(image_id, wait_seconds=1 if progress is not None else _WAIT_SECONDS)
            if progress is not None:
                progress(info)
            if info.state == "failed":
                raise ImageFailedError(info)
            if info.is_settled:
                return info

    def get(self, image_id: str, *, wait_seconds: float = 0) -> ImageInfo:
        """Return an image; with `wait_seconds` once it is settled, or after that long. NotFoundError."""
        request = Request(
            "GET",
            f"/v1/images/{segment(image_id)}",
            query={"wait_seconds": wait_seconds},
            silence_seconds=wait_seconds + _MARGIN_SECONDS,
        )
        return ImageInfo.parse(self._client.call(request))

    def find(self, name: str) -> ImageInfo:
        """Return the image of an id, or of a name of the project's. NotFoundError."""
        if name.startswith("img"):
            return self.get(name)
        found = [info for info in self.list(tag=name)]
        if not found:
            for info in self.list(visibility="public"):
                if name in info.tags or f"{name}:latest" in info.tags:
                    return info
            raise NotFoundError(404, {"code": "image_not_found", "detail": f"there is no image {name!r}"})
        return found[0]

    def list(
        self, *, state: Sequence[str] = (), tag: str | None = None, visibility: str | None = None
    ) -> Generator[ImageInfo, None]:
        """Yield images, newest first; the platform's own come last."""
        given: dict[str, Any] = {"state": [*state] or None, "tag": tag, "visibility": visibility}
        query = {name: value for name, value in given.items() if value is not None}
        while True:
            page = as_object(self._client.call(Request("GET", "/v1/images", query=query)))
            for item in as_objects(page.get("items")):
                yield ImageInfo.parse(item)
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]

    def delete(self, image_id: str) -> None:
        """Remove an image and its names; one that is being made is given up. NotFoundError."""
        path = f"/v1/images/{segment(image_id)}"
        self._client.call(Request("DELETE", path, absence_is_success=True))

    def tag(self, image_id: str, name: str) -> ImageTag:
        """Give an image a name, `name` or `name:tag`; whatever had it has it no more."""
        body = {"image_id": image_id}
        return ImageTag.parse(self._client.call(Request("PUT", f"/v1/tags/{_whole(name)}", body=body)))

    def untag(self, name: str) -> None:
        """Remove a name; the image stays. NotFoundError."""
        self._client.call(Request("DELETE", f"/v1/tags/{_whole(name)}", absence_is_success=True))

    def tags(self) -> Generator[ImageTag, None]:
        """Yield the project's names."""
        query: dict[str, Any] = {}
        while True:
            page = as_object(self._client.call(Request("GET", "/v1/tags", query=query)))
            for item in as_objects(page.get("items")):
                yield ImageTag.parse(item)
            if not page.get("next_cursor"):
                return
            query["cursor"] = page["next_cursor"]

    def log(self, image_id: str, *, after: int = 0, follow: bool = False) -> Generator[dict[str, Any], None]:
        """Yield the lines of an image's log; with `follow` to its `exit`. A broken stream is opened again."""
        path = f"/v1/images/{segment(image_id)}/log"
        patience = Patience(self._client.retries)
        while True:
            query: dict[str, Any] = {"after": after, "follow": follow}
            try:
                with self._client.stream(Request("GET", path, query=query, accept=NDJSON)) as answer:
                    reader = LineReader()
                    for data in answer.iter_bytes():
                        for row in reader.feed(data):
                            patience.progress()
                            after = int(row.get("next", after))
                            if row.get("kind") != "keepalive":
                                yield row
                return  # noqa: TRY300 - the way out of the loop
            except UnreachableError as error:
                delay = patience.next_delay(error, repeatable=True)
                if delay is None:
                    raise
            sleep(delay)

    def upload(self, path: Path, *, progress: UploadWatcher | None = None) -> str:
        """Upload a file, from where an earlier try ended; return its SHA-256, by which it is known."""
        sha256, total = in_thread(sum_of, path)
        offset = self._offset(sha256)
        while True:
            if progress is not None:
                progress(offset, total)
            if offset >= total:
                return sha256
            data = in_thread(part_of, path, offset, _PART_BYTES)
            request = Request(
                "PUT",
                f"/v1/uploads/{sha256}",
                query={"offset": offset, "total_bytes": total},
                content=data,
                content_bytes=len(data),
            )
            offset = int(as_object(self._client.call(request))["offset"])

    def _upload_files(self, files: Sequence[Files], progress: UploadWatcher | None) -> str:
        """Pack files and upload that; the same files are not sent twice."""
        with NamedTemporaryFile(prefix="sandlot-context-") as place:
            in_thread(_context.write, place, files)
            place.flush()
            return self.upload(Path(place.name), progress=progress)

    def _offset(self, sha256: str) -> int:
        try:
            with self._client.stream(Request("HEAD", f"/v1/uploads/{sha256}")) as answer:
                return int(answer.headers.get("upload-offset", 0))
        except NotFoundError:
            return 0


def _whole(name: str) -> str:
    return segment(name if ":" in name else f"{name}:latest")
