"""What every store of objects promises, a directory and a bucket of a real S3 server alike."""

import subprocess
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from packs_kit import S3, s3_server
from sandboxd.packs.blobs import (
    BlobError,
    BlobMissingError,
    Blobs,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from sandboxd.packs.directory import DirectoryBlobs

LIMIT = 1 << 20


@dataclass
class Kind:
    """One store, and what can become of it."""

    blobs: Blobs
    again: Callable[[], Blobs]
    """Another process that uses the same store."""
    vanish: Callable[[], None]


@pytest.fixture(scope="module", name="server")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["directory", "bucket"], name="kind")
def _kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    if request.param == "directory":
        root = tmp_path / "store"
        blobs = DirectoryBlobs(root)
        blobs.open()
        return Kind(blobs, lambda: DirectoryBlobs(root), lambda: root.rename(tmp_path / "gone") and None)
    server: S3 = request.getfixturevalue("server")
    name = f"b{abs(hash(request.node.name)) % 10**8}-{tmp_path.name[-6:].replace('_', '-').lower()}".strip("-")
    bucket = server.bucket(name)
    return Kind(
        server.blobs(name, "some/prefix"),
        lambda: server.blobs(name, "some/prefix"),
        lambda: bucket.rename(server.data.parent / f"gone-{name}") and None,
    )


def test_what_was_put_is_there_for_everybody(kind: Kind) -> None:
    kind.blobs.put("v1/packs/public/aa", b"one" * 1000)
    assert kind.again().get("v1/packs/public/aa", LIMIT) == b"one" * 1000
    kind.blobs.put("v1/packs/public/aa", b"two")
    assert kind.again().get("v1/packs/public/aa", LIMIT) == b"two"
    kind.blobs.put("v1/empty", b"")
    assert kind.blobs.get("v1/empty", LIMIT) == b""


def test_large_objects_come_back_to_the_byte(kind: Kind) -> None:
    data = b"".join(number.to_bytes(4, "big") for number in range(3 << 20))
    kind.blobs.put("v1/large", data)
    assert kind.blobs.get("v1/large", 1 << 24) == data
    assert kind.blobs.get_range("v1/large", 5 << 20, 1 << 20) == data[5 << 20 : 6 << 20]


def test_ranges_are_exact_or_refused(kind: Kind) -> None:
    kind.blobs.put("v1/a", b"0123456789")
    assert kind.blobs.get_range("v1/a", 0, 10) == b"0123456789"
    assert kind.blobs.get_range("v1/a", 3, 4) == b"3456"
    assert kind.blobs.get_range("v1/a", 3, 0) == b""
    for offset, length in ((5, 6), (10, 1), (1000, 5)):
        with pytest.raises(BlobMissingError):
            kind.blobs.get_range("v1/a", offset, length)


def test_what_is_not_there_is_missing(kind: Kind) -> None:
    with pytest.raises(BlobMissingError):
        kind.blobs.get("v1/nothing", LIMIT)
    with pytest.raises(BlobMissingError):
        kind.blobs.get_range("v1/nothing", 0, 1)
    kind.blobs.delete("v1/nothing")
    kind.blobs.put("v1/x", b"x")
    kind.blobs.delete("v1/x")
    with pytest.raises(BlobMissingError):
        kind.blobs.get("v1/x", LIMIT)


def test_nothing_larger_than_asked_for_is_read(kind: Kind) -> None:
    kind.blobs.put("v1/a", b"x" * 100)
    with pytest.raises(BlobError, match="more than 99"):
        kind.blobs.get("v1/a", 99)
    assert len(kind.blobs.get("v1/a", 100)) == 100


def test_a_listing_is_of_one_branch(kind: Kind) -> None:
    for key in ("v1/packs/public/aa", "v1/packs/public/bb", "v1/packs/publicity/cc", "v1/images/dd/public/ee"):
        kind.blobs.put(key, key.encode())
    found = {blob.key: blob.size for blob in kind.blobs.list("v1/packs/public")}
    assert found == {"v1/packs/public/aa": 18, "v1/packs/public/bb": 18}
    assert len(list(kind.blobs.list("v1"))) == 4
    assert list(kind.blobs.list("v1/none")) == []
    assert all(blob.modified > 1_600_000_000 for blob in kind.blobs.list("v1"))


def test_a_listing_goes_beyond_a_page(kind: Kind) -> None:
    keys = [f"v1/many/{number:05}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(kind.blobs.put, keys, [b""] * len(keys)))
    assert len(list(kind.blobs.list("v1/many"))) == 1100


@pytest.mark.parametrize(
    "key", ["", "/x", "../x", "v1/../x", "v1//x", "v1/x/", "v1/.hidden", "v1/a\nb", "v1/" + "x" * 200]
)
def test_no_key_leads_outside(kind: Kind, key: str) -> None:
    for work in (lambda: kind.blobs.put(key, b""), lambda: kind.blobs.get(key, 1), lambda: kind.blobs.delete(key)):
        with pytest.raises(ValueError, match="no key"):
            work()


def test_readers_see_an_object_whole_while_it_is_replaced(kind: Kind) -> None:
    versions = [bytes([number]) * (1 << 18) for number in range(12)]
    kind.blobs.put("v1/a", versions[0])
    done = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        other = kind.again()
        while not done.is_set():
            seen.append(other.get("v1/a", LIMIT))

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for version in versions:
            kind.blobs.put("v1/a", version)
        done.set()
        reading.result()
    assert all(data in versions for data in seen)


def test_a_store_that_is_gone_is_not_an_empty_one(kind: Kind) -> None:
    kind.blobs.put("v1/a", b"x")
    kind.vanish()
    for work in (
        lambda: kind.blobs.get("v1/a", LIMIT),
        lambda: kind.blobs.get_range("v1/a", 0, 1),
        lambda: list(kind.blobs.list("v1")),
        lambda: kind.blobs.put("v1/b", b"x"),
        lambda: kind.blobs.delete("v1/a"),
    ):
        with pytest.raises(StoreUnavailableError):
            work()


def test_wrong_credentials_are_told_without_showing_them(server: S3) -> None:
    server.bucket("locked")
    blobs = server.blobs("locked", secret="wrong-secret-987")
    failures: list[Exception] = []
    for work in (lambda: blobs.get("v1/a", 1), lambda: blobs.put("v1/a", b""), lambda: list(blobs.list("v1"))):
        with pytest.raises(BlobError) as caught:
            work()
        failures.append(caught.value)
    assert [type(error) for error in failures] == [StoreUnavailableError, StoreReadOnlyError, StoreUnavailableError]
    assert not any("wrong-secret" in f"{error}{error.__cause__}" for error in failures)
    assert "wrong-secret" not in repr(server.place("locked", secret="wrong-secret-987"))


def test_a_server_that_is_not_there_is_told_soon(server: S3) -> None:
    blobs = S3("http://127.0.0.1:9", server.data).blobs("b")
    with pytest.raises(StoreUnavailableError):
        blobs.get("v1/a", 1)


@pytest.fixture(name="small")
def _small(tmp_path: Path) -> Generator[Path]:
    """A disk of one MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_directory_says_so_and_keeps_what_it_had(small: Path) -> None:
    blobs = DirectoryBlobs(small / "store")
    blobs.open()
    blobs.put("v1/a", b"x" * 1000)
    with pytest.raises(StoreFullError):
        blobs.put("v1/b", b"y" * (2 << 20))
    assert [blob.key for blob in blobs.list("v1")] == ["v1/a"]
    assert list((small / "store" / ".fresh").iterdir()) == []
    blobs.put("v1/c", b"z" * 1000)


def test_a_read_only_directory_says_so_and_can_be_read(small: Path) -> None:
    blobs = DirectoryBlobs(small / "store")
    blobs.open()
    blobs.put("v1/a", b"x")
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with pytest.raises(StoreReadOnlyError):
        blobs.put("v1/b", b"y")
    with pytest.raises(StoreReadOnlyError):
        blobs.delete("v1/a")
    assert blobs.get("v1/a", 1) == b"x"


def test_a_directory_with_other_things_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(StoreUnavailableError, match="no store of images"):
        DirectoryBlobs(tmp_path).open()
