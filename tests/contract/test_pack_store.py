"""The store of packs: images come out as they went in, content is stored once, nothing of others shows."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from image_kit import Tree, build, files_tar, to_tar, trees
from packs_kit import S3, MemoryBlobs, s3_server
from sandboxd.images.erofs import sum_up
from sandboxd.images.erofs_units import ErofsReader, meta_bytes_of, units_of
from sandboxd.packs.blobs import BlobError, Blobs, StoreFullError, StoreUnavailableError
from sandboxd.packs.collect import Collector, sizes
from sandboxd.packs.directory import DirectoryBlobs
from sandboxd.packs.intents import LIVES_SECONDS, ExpiredError, Writing
from sandboxd.packs.keys import ManifestName
from sandboxd.packs.manifest import Facts
from sandboxd.packs.pack import DamagedError
from sandboxd.packs.packer import Packed, Stretch
from sandboxd.packs.store import PackStore


@dataclass
class Stand:
    """One node's view of a store."""

    blobs: Blobs
    home: Path
    store: PackStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = PackStore(self.blobs, self.home)

    def add(self, image: Path, domain: str = "public", tick: Callable[[], None] = lambda: None) -> Packed:
        with self.store.writing() as writing:
            content = [Stretch(*unit) for unit in units_of(image)]
            return self.store.add(image, content, facts_of(image), domain=domain, writing=writing, tick=tick)


def facts_of(image: Path) -> Facts:
    summed = sum_up(image)
    return Facts(
        image=summed.digest,
        size_bytes=summed.size_bytes,
        superblock=summed.superblock,
        meta_bytes=meta_bytes_of(image),
        config={},
        dropped={},
        builder="test",
    )


@pytest.fixture(name="memory")
def _memory() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture(name="stand")
def _stand(memory: MemoryBlobs, tmp_path: Path) -> Stand:
    return Stand(memory, tmp_path / "home")


def noise(seed: int, count: int) -> bytes:
    return hashlib.shake_128(str(seed).encode()).digest(count)


def image_of(home: Path, files: dict[str, bytes]) -> Path:
    path, _ = build(home, files_tar(files))
    return path


def some_image(home: Path, *, version: int = 0) -> Path:
    files = {f"lib/{number:03}": noise(number, 3000 + 700 * number) for number in range(60)}
    files |= {"large": noise(99, 3_500_000), "sparse": noise(7, 5000) + bytes(4 << 20) + b"end", "empty": b""}
    files[f"only/{version}"] = noise(1000 + version, 50_000)
    return image_of(home, files)


def check_filled(stand: Stand, packed: Packed, image: Path, target: Path) -> None:
    stand.store.fill(packed.name, target)
    assert target.read_bytes() == image.read_bytes()
    target.unlink()


@given(trees())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_comes_out_to_the_byte(tmp_path: Path, tree: Tree) -> None:
    home = tmp_path / hashlib.sha256(repr(tree).encode()).hexdigest()[:12]
    image, _ = build(home, to_tar(tree))
    stand = Stand(MemoryBlobs(), home / "store")
    check_filled(stand, stand.add(image), image, home / "out")


def test_a_large_image_comes_out_to_the_byte_and_is_named_by_what_it_holds(stand: Stand, tmp_path: Path) -> None:
    image = some_image(tmp_path / "a")
    packed = stand.add(image)
    check_filled(stand, packed, image, tmp_path / "out")
    assert f"sha256:{packed.name.image}" == sum_up(image).digest
    elsewhere = Stand(MemoryBlobs(), tmp_path / "elsewhere")
    assert elsewhere.add(image).name == packed.name
    assert packed.manifest.facts.meta_bytes == meta_bytes_of(image) > 0


def test_an_image_that_mkfs_made_comes_out_to_the_byte(stand: Stand, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep/er").mkdir(parents=True)
    (tree / "many").mkdir()
    for number in range(700):
        (tree / f"many/{number:04}-{'n' * 60}").write_bytes(noise(number, number * 5))
    (tree / "deep/er/large").write_bytes(noise(1, 2_100_001))
    (tree / "deep/link").symlink_to("er/large")
    image = tmp_path / "image"
    command = ["mkfs.erofs", "--quiet", "-x-1", "-Enoinline_data", str(image), str(tree)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    check_filled(stand, stand.add(image), image, tmp_path / "out")
    reader = ErofsReader(image)
    names = {name for inode in reader.walk() if inode.mode & 0o170000 == 0o040000 for name, _ in reader.entries(inode)}
    reader.close()
    assert len(names) == 700 + 5


def test_content_is_stored_once(stand: Stand, memory: MemoryBlobs, tmp_path: Path) -> None:
    first = stand.add(some_image(tmp_path / "a"))
    again = stand.add(some_image(tmp_path / "a"))
    assert again.name == first.name
    assert again.new_bytes == 0
    image = some_image(tmp_path / "b", version=1)
    second = stand.add(image)
    assert 50_000 < second.new_bytes < 120_000
    check_filled(stand, second, image, tmp_path / "out")
    shared, unique = sizes([first.manifest, second.manifest])[second.manifest.facts.image]
    assert unique < 120_000
    assert shared > 3_000_000


def test_a_node_that_never_saw_the_store_stores_nothing_twice(
    stand: Stand, memory: MemoryBlobs, tmp_path: Path
) -> None:
    stand.add(some_image(tmp_path / "a"))
    other = Stand(memory, tmp_path / "other-node")
    assert other.add(some_image(tmp_path / "b", version=1)).new_bytes < 120_000


def test_private_content_is_shared_with_nobody(stand: Stand, memory: MemoryBlobs, tmp_path: Path) -> None:
    """Whether another project has the same content shows in no name, no size and no request."""
    alone = Stand(MemoryBlobs(), tmp_path / "alone")
    image = some_image(tmp_path / "a")
    alone_reads = len(alone.add(image, "prjb").manifest.packs), alone.blobs
    stand.add(image, "prja")
    memory.reads.clear()
    theirs = stand.add(image, "prjb")
    assert theirs.new_bytes > 3_000_000
    assert all(pack.domain == "prjb" for pack in theirs.manifest.packs)
    assert not any("prja" in read for read in memory.reads if "condemned" not in read)
    assert len(theirs.manifest.packs) == alone_reads[0]
    assert {key.rpartition("/")[2] for key in memory.keys("v1/packs/prja")} == {
        key.rpartition("/")[2] for key in memory.keys("v1/packs/prjb")
    }


def test_public_content_is_shared_with_everybody(stand: Stand, tmp_path: Path) -> None:
    stand.add(some_image(tmp_path / "a"))
    private = stand.add(some_image(tmp_path / "b", version=1), "prja")
    assert private.new_bytes < 120_000
    assert {pack.domain for pack in private.manifest.packs} == {"public", "prja"}
    public = stand.add(some_image(tmp_path / "c", version=1))
    assert {pack.domain for pack in public.manifest.packs} == {"public"}


def test_what_is_here_is_copied_and_not_fetched(stand: Stand, memory: MemoryBlobs, tmp_path: Path) -> None:
    old, new = some_image(tmp_path / "a"), some_image(tmp_path / "b", version=1)
    first, second = stand.add(old), stand.add(new)
    filled = stand.store.fill(second.name, tmp_path / "out", beside=[(first.name, old)])
    assert (tmp_path / "out").read_bytes() == new.read_bytes()
    assert filled.fetched_bytes < 200_000
    assert filled.copied_bytes > 3_000_000


def test_a_damaged_copy_beside_is_not_believed(stand: Stand, tmp_path: Path) -> None:
    old, new = some_image(tmp_path / "a"), some_image(tmp_path / "b", version=1)
    first, second = stand.add(old), stand.add(new)
    old.write_bytes(bytes(old.stat().st_size))
    filled = stand.store.fill(second.name, tmp_path / "out", beside=[(first.name, old)])
    assert (tmp_path / "out").read_bytes() == new.read_bytes()
    assert filled.copied_bytes == 0


def test_nothing_is_copied_from_an_image_of_others(stand: Stand, tmp_path: Path) -> None:
    image = some_image(tmp_path / "a")
    ours, theirs = stand.add(image, "prja"), stand.add(image, "prjb")
    filled = stand.store.fill(ours.name, tmp_path / "out", beside=[(theirs.name, image)])
    assert filled.copied_bytes == 0


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_damage_in_the_store_is_found_before_a_byte_is_visible(
    stand: Stand, memory: MemoryBlobs, tmp_path: Path, where: float
) -> None:
    packed = stand.add(some_image(tmp_path / "a"))
    key = packed.manifest.packs[0].key
    data, at = memory.objects[key]
    place = int(packed.manifest.frames.offsets[0] + where * 2_000_000)
    memory.objects[key] = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], at
    with pytest.raises(DamagedError):
        stand.store.fill(packed.name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pack_that_is_gone_or_cut_off_ends_the_fill(stand: Stand, memory: MemoryBlobs, tmp_path: Path) -> None:
    packed = stand.add(some_image(tmp_path / "a"))
    key = packed.manifest.packs[0].key
    data, at = memory.objects.pop(key)
    with pytest.raises(BlobError):
        stand.store.fill(packed.name, tmp_path / "out")
    memory.objects[key] = data[: len(data) // 2], at
    with pytest.raises(BlobError):
        stand.store.fill(packed.name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_transfer_that_was_damaged_once_is_done_again(stand: Stand, memory: MemoryBlobs, tmp_path: Path) -> None:
    image = some_image(tmp_path / "a")
    packed = stand.add(image)
    key = packed.manifest.packs[0].key
    right, at = memory.objects[key]
    memory.objects[key] = right[:1000] + b"\0" * 4000 + right[5000:], at
    broken = iter([True])

    def mend(what: str, asked: str) -> None:
        if asked == key and not next(broken, False):
            memory.objects[key] = right, at

    memory.fail = mend
    check_filled(stand, packed, image, tmp_path / "out")


def test_a_store_that_stops_in_the_middle_of_an_import_has_nothing_half(
    stand: Stand, memory: MemoryBlobs, tmp_path: Path
) -> None:
    image = some_image(tmp_path / "a")
    stored = [0]

    def full(what: str, key: str) -> BlobError | None:
        if what == "put" and "/packs/" in key:
            stored[0] += 1
            return StoreFullError("full")
        return None

    memory.fail = full
    with pytest.raises(StoreFullError):
        stand.add(image)
    memory.fail = lambda _what, _key: None
    assert memory.keys("v1/images") == set()
    assert memory.keys("v1/intents") == set()
    check_filled(stand, stand.add(image), image, tmp_path / "out")


def test_an_import_that_nobody_wants_ends_soon(stand: Stand, memory: MemoryBlobs, tmp_path: Path) -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        stand.add(some_image(tmp_path / "a"), tick=stop)
    assert memory.keys("v1/images") == set()


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "."]
import test_pack_store as kit
from sandboxd.packs.directory import DirectoryBlobs

class Slow(DirectoryBlobs):
    def put(self, key, data):
        super().put(key, data)
        if "/packs/" in key:
            print("stored", flush=True)
            sys.stdin.readline()

stand = kit.Stand(Slow(Path(sys.argv[1])), Path(sys.argv[2]))
stand.add(Path(sys.argv[3]))
"""


def test_an_import_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    image = image_of(tmp_path / "a", {f"f{number}": noise(number, 900_000) for number in range(24)})
    blobs = DirectoryBlobs(tmp_path / "store")
    blobs.open()
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "store"), str(tmp_path / "h"), str(image)]
    path = os.pathsep.join(["tests", "tests/contract", "."])
    program = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert program.stdout is not None
    assert program.stdin is not None
    with program.stdin, program.stdout:
        assert program.stdout.readline() == b"stored\n"
        program.send_signal(signal.SIGKILL)
        program.wait()
    assert list(blobs.list("v1/images")) == []
    stored = sum(blob.size for blob in blobs.list("v1/packs"))
    assert stored > 8_000_000
    stand = Stand(blobs, tmp_path / "h")
    packed = stand.add(image)
    assert packed.new_bytes <= image.stat().st_size - stored + 100_000
    check_filled(stand, packed, image, tmp_path / "out")
    # What the dead one meant to write is forgotten after a day.
    later = time.time() + LIVES_SECONDS + 1
    Collector(blobs, now=lambda: later).look([packed.name.image])
    assert list(blobs.list("v1/intents")) == []


def test_an_import_that_slept_too_long_makes_nothing_visible(stand: Stand, memory: MemoryBlobs, tmp_path: Path) -> None:
    image = some_image(tmp_path / "a")
    now = [0.0]
    writing = Writing(memory, clock=lambda: now[0])
    writing.begin()

    def sleep() -> None:
        now[0] += LIVES_SECONDS

    content = [Stretch(*unit) for unit in units_of(image)]
    with pytest.raises(ExpiredError):
        stand.store.add(image, content, facts_of(image), domain="public", writing=writing, tick=sleep)
    assert memory.keys("v1/images") == set()


def test_a_broken_index_is_made_anew(stand: Stand, tmp_path: Path) -> None:
    stand.add(some_image(tmp_path / "a"))
    index = tmp_path / "home/units.db"
    for path in tmp_path.glob("home/units.db-*"):
        path.unlink()
    index.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    assert stand.add(some_image(tmp_path / "b", version=1)).new_bytes < 120_000


def test_an_image_that_is_said_to_be_another_one_is_not_read(stand: Stand, memory: MemoryBlobs, tmp_path: Path) -> None:
    packed = stand.add(some_image(tmp_path / "a"))
    other = replace(packed.name, image="00" * 32)
    memory.objects[other.key] = memory.objects[packed.name.key]
    with pytest.raises(DamagedError):
        Stand(memory, tmp_path / "n").store.manifest(other)


def test_finding_prefers_what_is_public(stand: Stand, tmp_path: Path) -> None:
    image = some_image(tmp_path / "a")
    private, public = stand.add(image, "prja"), stand.add(image)
    assert stand.store.find(public.name.image) == public.name
    assert stand.store.find(public.name.image, "prja") == private.name
    assert stand.store.find(public.name.image, "prjb") is None
    assert stand.store.find("00" * 32) is None


def test_a_manifest_that_was_collected_is_put_back_by_who_needs_it(
    stand: Stand, memory: MemoryBlobs, tmp_path: Path
) -> None:
    packed = stand.add(some_image(tmp_path / "a"))
    del memory.objects[packed.name.key]
    stand.store.publish("here", [packed.name])
    assert Stand(memory, tmp_path / "n").store.find(packed.name.image) == packed.name
    stand.store.publish("here", [packed.name, ManifestName("public", "00" * 32, "11" * 32)])


@pytest.fixture(scope="module", name="server")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


def test_a_bucket_serves_a_node_that_has_nothing_else(server: S3, tmp_path: Path) -> None:
    server.bucket("images")
    image = some_image(tmp_path / "a")
    name = Stand(server.blobs("images", "p"), tmp_path / "one").add(image).name
    other = Stand(server.blobs("images", "p"), tmp_path / "two")
    found = other.store.find(sum_up(image).digest.removeprefix("sha256:"))
    assert found == name
    other.store.fill(name, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_a_bucket_that_is_gone_is_told(server: S3, tmp_path: Path) -> None:
    stand = Stand(server.blobs("no-such-bucket"), tmp_path / "one")
    with pytest.raises(StoreUnavailableError):
        stand.add(some_image(tmp_path / "a"))
