"""Stores of images for tests: in memory, and in a bucket of a real S3 server."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness import cache_dir, eventually
from infra.setup import s3_for_tests
from infra.setup.progress import Progress
from sandboxd.packs.blobs import Blob, BlobError, BlobMissingError, checked
from sandboxd.packs.bucket import BucketBlobs, Place

ACCESS, SECRET = "test-access", "test-secret-1234567890"


@dataclass
class S3:
    """A server with its data in a directory: a bucket is a directory there."""

    endpoint: str
    data: Path

    def bucket(self, name: str) -> Path:
        place = self.data / name
        place.mkdir(exist_ok=True)
        return place

    def place(self, bucket: str, prefix: str = "", secret: str = SECRET) -> Place:
        return Place(bucket=bucket, prefix=prefix, endpoint=self.endpoint, access_key=ACCESS, secret_key=secret)

    def blobs(self, bucket: str, prefix: str = "", secret: str = SECRET) -> BucketBlobs:
        return BucketBlobs(self.place(bucket, prefix, secret))


@contextmanager
def s3_server(home: Path) -> Generator[S3]:
    """A real server, on a port of its own."""
    program = s3_for_tests.provide(Progress(home / "logs"), cache_dir())
    data, sidecar = home / "data", home / "sidecar"
    data.mkdir(parents=True)
    sidecar.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    env = {**os.environ, "ROOT_ACCESS_KEY": ACCESS, "ROOT_SECRET_KEY": SECRET}
    command = [program, "--port", host, "--quiet", "posix", "--sidecar", str(sidecar), str(data)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        eventually(lambda: _answers(host), "the S3 server")
        yield S3(f"http://{host}", data)
    finally:
        process.terminate()
        process.wait()


def _answers(host: str) -> bool:
    name, _, port = host.partition(":")
    with socket.socket() as asking:
        return asking.connect_ex((name, int(port))) == 0


@dataclass
class MemoryBlobs:
    """Objects in memory, with a clock of its own; fails on request."""

    now: float = 0.0
    objects: dict[str, tuple[bytes, float]] = field(default_factory=dict[str, tuple[bytes, float]])
    reads: list[str] = field(default_factory=list[str])
    fail: Callable[[str, str], BlobError | None] = lambda _what, _key: None
    delay: float = 0.0

    def open(self) -> None:
        pass

    def put(self, key: str, data: bytes) -> None:
        self._may("put", key)
        self.objects[checked(key)] = bytes(data), self.now

    def get(self, key: str, limit: int) -> bytes:
        self._may("get", key)
        if key not in self.objects:
            raise BlobMissingError(key)
        assert len(self.objects[key][0]) <= limit
        return self.objects[key][0]

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        self._may("get", key)
        data = self.objects.get(key, (b"", 0))[0][offset : offset + length]
        if len(data) != length:
            raise BlobMissingError(key)
        return data

    def list(self, prefix: str) -> Iterator[Blob]:
        self._may("list", prefix)
        for key, (data, at) in sorted(self.objects.items()):
            if key.startswith(prefix + "/"):
                yield Blob(key, len(data), at)

    def delete(self, key: str) -> None:
        self._may("delete", key)
        self.objects.pop(key, None)

    def keys(self, prefix: str) -> set[str]:
        return {key for key in self.objects if key.startswith(prefix)}

    def _may(self, what: str, key: str) -> None:
        self.reads.append(f"{what} {key}")
        if self.delay:
            time.sleep(self.delay)
        if (error := self.fail(what, key)) is not None:
            raise error
