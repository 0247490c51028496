"""Images of a node over a store: fetched once, evicted, found damaged, had again; nothing ever starts from less."""

import asyncio
import json
import os
import subprocess
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from image_kit import files_tar
from packs_kit import MemoryBlobs
from sandboxd.images.base import ImageConfig, ImageDamagedError, ImageMissingError, Origin
from sandboxd.images.failures import ImageReason, ImageSourceError
from sandboxd.images.store import ImageStore
from sandboxd.packs.blobs import StoreFullError, StoreUnavailableError
from sandboxd.packs.collect import Collector
from sandboxd.packs.store import PackStore

CONFIG = ImageConfig(env={"A": "1"}, user="u")


@dataclass
class Node:
    """One node's images, over a store that others may use too."""

    home: Path
    blobs: MemoryBlobs
    cache_bytes: int = 0
    images: ImageStore = field(init=False)

    def __post_init__(self) -> None:
        self.again()

    def again(self) -> None:
        """Start over, as after a restart of the agent."""
        packs = PackStore(self.blobs, self.home / "images/.packs/x")
        self.images = ImageStore(self.home / "images", packs=packs, cache_bytes=self.cache_bytes)

    async def add(self, name: str, *, seed: int = 0, size: int = 300_000, domain: str = "public") -> str:
        source = self.home / f"{name}.tar"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(files_tar({"data": content(seed, size), "name": name.encode()}))
        return (await self.images.import_path(source, [name], CONFIG, domain=domain)).id

    def file(self, image_id: str) -> Path:
        (record,) = (record for record in self.images.records() if record.id == image_id)
        return self.home / "images" / f"{record.hex}.erofs"

    async def use(self, image_id: str) -> bytes:
        async with self.images.lease(image_id) as image:
            return image.path.read_bytes()

    def leftovers(self) -> list[str]:
        places = (self.home / "images/.filling", self.home / "images/.work")
        return [str(path) for place in places for path in place.iterdir()]


def content(seed: int, size: int) -> bytes:
    return b"".join(hash((seed, number)).to_bytes(8, "little", signed=True) for number in range(size // 8))


@pytest.fixture(name="blobs")
def _blobs() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture(name="node")
async def _node(tmp_path: Path, blobs: MemoryBlobs) -> Node:
    node = Node(tmp_path / "one", blobs)
    await node.images.open()
    return node


@pytest.fixture(name="other")
async def _other(tmp_path: Path, blobs: MemoryBlobs) -> Node:
    other = Node(tmp_path / "two", blobs)
    await other.images.open()
    return other


async def test_another_node_has_it_out_of_the_store_alone(node: Node, other: Node) -> None:
    image_id = await node.add("a")
    digest = node.images.records()[0].sum.digest
    with pytest.raises(ImageMissingError):
        async with other.images.lease(image_id):
            pass
    async with other.images.lease(image_id, digest) as image:
        assert image.path.read_bytes() == node.file(image_id).read_bytes()
        assert image.config == CONFIG
        assert image.digest == digest
    assert other.leftovers() == []


async def test_two_nodes_import_the_same_at_once(node: Node, other: Node, blobs: MemoryBlobs) -> None:
    """Each has it, whoever was first; what one wrote in vain, nobody needs and the collector takes."""
    blobs.delay = 0.001
    one, two = await asyncio.gather(node.add("same", size=2_000_000), other.add("same", size=2_000_000))
    blobs.delay = 0.0
    assert one == two
    wanted = node.file(one).read_bytes()
    for _ in range(4):
        blobs.now += 1000
        await asyncio.to_thread(_collect, blobs)
    for each in (node, other):
        each.file(one).unlink()
        assert await each.use(one) == wanted


def _collect(blobs: MemoryBlobs) -> None:
    collector = Collector(blobs, 100, now=lambda: blobs.now)
    collector.carry_out(collector.look())


async def test_a_name_for_what_is_in_the_store_fetches_nothing_yet(node: Node, other: Node, blobs: MemoryBlobs) -> None:
    await node.add("a")
    digest = node.images.records()[0].sum.digest
    image = await other.images.fetch(digest, ["b:latest"])
    assert [held.names for held in other.images.held()] == [["b:latest"]]
    assert not other.file(image.id).exists()
    assert await other.use(image.id) == node.file(image.id).read_bytes()
    with pytest.raises(ImageMissingError):
        await other.images.fetch("sha256:" + "00" * 32, [])


async def test_many_who_need_it_fetch_it_once(node: Node, other: Node, blobs: MemoryBlobs) -> None:
    image_id = await node.add("a", size=3_000_000)
    await other.images.fetch(node.images.records()[0].sum.digest, [])
    blobs.reads.clear()
    blobs.delay = 0.002
    async with asyncio.TaskGroup() as group:
        uses = [group.create_task(other.use(image_id)) for _ in range(12)]
    assert len({use.result() for use in uses}) == 1
    ranges = [read for read in blobs.reads if read.startswith("get v1/packs")]
    packs = len(blobs.keys("v1/packs"))
    assert len(ranges) <= 3 * packs


async def test_two_processes_fetch_it_once(node: Node, other: Node, blobs: MemoryBlobs) -> None:
    image_id = await node.add("a")
    await other.images.fetch(node.images.records()[0].sum.digest, [])
    second = Node(other.home, blobs)
    await second.images.open()
    blobs.delay = 0.005
    blobs.reads.clear()
    one, two = await asyncio.gather(other.use(image_id), second.use(image_id))
    assert one == two
    assert len([read for read in blobs.reads if read.startswith("get v1/packs")]) <= 2


async def test_a_fill_that_is_cancelled_leaves_nothing(node: Node, other: Node, blobs: MemoryBlobs) -> None:
    image_id = await node.add("a", size=2_000_000)
    await other.images.fetch(node.images.records()[0].sum.digest, [])
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(what: str, key: str) -> None:
        if "/packs/" in key:
            loop.call_soon_threadsafe(begun.set)

    blobs.fail = slow
    blobs.delay = 0.01
    async with asyncio.TaskGroup() as group:
        use = group.create_task(other.use(image_id))
        await begun.wait()
        use.cancel()
    blobs.delay = 0
    assert await other.use(image_id) == node.file(image_id).read_bytes()
    assert other.leftovers() == []


async def test_the_longest_unused_goes_when_there_is_no_room(node: Node, tmp_path: Path) -> None:
    ids = [await node.add(f"n{number}", seed=number) for number in range(4)]
    size = node.file(ids[0]).stat().st_blocks * 512
    for number, image_id in enumerate(ids):
        os.utime(node.file(image_id).with_suffix(".json"), (1000 + number, 1000 + number))
    node.cache_bytes = 3 * size
    node.again()
    await node.images.open()
    node.file(ids[3]).unlink()
    async with node.images.lease(ids[0]), node.images.lease(ids[3]):
        there = [node.file(image_id).exists() for image_id in ids]
    assert there == [True, False, True, True]
    assert len(node.images.held()) == 4
    assert await node.use(ids[1])


async def test_what_is_leased_or_nowhere_else_is_not_evicted(node: Node, tmp_path: Path) -> None:
    first = await node.add("a")
    plain = ImageStore(node.home / "images")
    (tmp_path / "b.tar").write_bytes(files_tar({"only": b"here"}))
    alone = await plain.import_path(tmp_path / "b.tar", ["b"], CONFIG)
    second = await node.add("c", seed=2)
    node.cache_bytes = 1
    node.again()
    await node.images.open()
    node.file(second).unlink()
    async with node.images.lease(first):
        await node.use(second)
        assert node.file(first).exists()
    assert (node.home / "images" / f"{alone.digest.removeprefix('sha256:')}.erofs").exists()


@pytest.mark.parametrize("damage", ["gone", "cut", "superblock"])
async def test_a_damaged_file_is_had_again(node: Node, damage: str) -> None:
    image_id = await node.add("a")
    right = await node.use(image_id)
    path = node.file(image_id)
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, 4096)
    else:
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(1024)
            file.write(bytes(64))
        path.chmod(0o444)
    assert await node.use(image_id) == right
    assert node.leftovers() == []


async def test_a_damaged_file_is_unavailable_when_the_store_is_gone(node: Node, blobs: MemoryBlobs) -> None:
    image_id = await node.add("a")
    node.file(image_id).unlink()
    blobs.fail = lambda _what, _key: StoreUnavailableError("gone")
    with pytest.raises(ImageDamagedError, match="gone"):
        await node.use(image_id)
    assert len(node.images.held()) == 1
    blobs.fail = lambda _what, _key: None
    assert await node.use(image_id)


async def test_damage_in_the_store_starts_nothing(node: Node, blobs: MemoryBlobs) -> None:
    image_id = await node.add("a")
    node.file(image_id).unlink()
    (key,) = blobs.keys("v1/packs")
    data, at = blobs.objects[key]
    blobs.objects[key] = data[:5000] + bytes(1000) + data[6000:], at
    with pytest.raises(ImageDamagedError, match=r"hash|damaged"):
        await node.use(image_id)
    assert not node.file(image_id).exists()
    assert node.leftovers() == []


async def test_a_scrub_finds_what_a_start_would_not(node: Node, blobs: MemoryBlobs) -> None:
    image_id = await node.add("a")
    right = await node.use(image_id)
    assert await node.images.verify(image_id)
    path = node.file(image_id)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(100_000)
        file.write(b"rot")
    path.chmod(0o444)
    assert not await node.images.verify(image_id)
    assert await node.use(image_id) == right
    assert await node.images.verify(image_id)
    assert len(list((node.home / "images/.quarantine").iterdir())) == 1


async def test_what_a_crash_may_have_left_half_written_is_read_before_it_is_used(node: Node) -> None:
    image_id = await node.add("a")
    right = await node.use(image_id)
    path = node.file(image_id)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(100_000)
        file.write(bytes(100_000))
    node.again()
    await node.images.open()
    assert await node.use(image_id) == right


async def test_a_disk_that_is_full_says_so_and_keeps_nothing_half(node: Node, blobs: MemoryBlobs, small: Path) -> None:
    image_id = await node.add("a", size=3_000_000)
    digest = node.images.records()[0].sum.digest
    other = Node(small, blobs)
    await other.images.open()
    await other.images.fetch(digest, [])
    with pytest.raises(ImageDamagedError, match="room"):
        await other.use(image_id)
    assert other.leftovers() == []


@pytest.fixture(name="small")
def _small(tmp_path: Path) -> Generator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreFullError("no room"), ImageReason.TOO_LARGE),
        (StoreUnavailableError("gone"), ImageReason.STORE_UNAVAILABLE),
    ],
)
async def test_an_import_that_cannot_be_stored_is_no_image(
    node: Node, blobs: MemoryBlobs, error: Exception, reason: ImageReason
) -> None:
    def fail(what: str, key: str) -> Exception | None:
        return error if what == "put" and "/packs/" in key else None

    blobs.fail = fail  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImageSourceError) as caught:
        await node.add("a")
    assert caught.value.reason is reason
    assert node.images.records() == []
    assert blobs.keys("v1/images") == set()
    assert list((node.home / "images").glob("*.erofs")) == []
    assert node.leftovers() == []


async def test_many_who_import_the_same_store_it_once(node: Node, blobs: MemoryBlobs) -> None:
    source = node.home / "a.tar"
    source.write_bytes(files_tar({"data": content(1, 200_000)}))
    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(node.images.import_path(source, [f"n{number}"], CONFIG, domain="public"))
    assert len([read for read in blobs.reads if read.startswith("put v1/packs")]) == 1
    assert len(blobs.keys("v1/images")) == 1
    assert blobs.keys("v1/intents") == set()


async def test_the_store_is_told_what_a_node_has(node: Node, other: Node, blobs: MemoryBlobs) -> None:
    first, second = await node.add("a"), await node.add("b", seed=2)
    await other.images.fetch(node.images.records()[0].sum.digest, [])
    told = [json.loads(blobs.objects[key][0]) for key in sorted(blobs.keys("v1/nodes"))]
    assert sorted(len(images) for images in told) == [1, 2]
    await node.images.remove(first)
    await node.images.remove(second)
    told = [json.loads(blobs.objects[key][0]) for key in sorted(blobs.keys("v1/nodes"))]
    assert sorted(len(images) for images in told) == [0, 1]


async def test_a_collection_frees_what_no_node_has(node: Node, other: Node, blobs: MemoryBlobs) -> None:
    kept, gone = await node.add("a"), await node.add("b", seed=2)
    (digest,) = (record.sum.digest for record in node.images.records() if record.id == kept)
    await other.images.fetch(digest, [])
    await node.images.remove(gone)
    await node.images.remove(kept)
    for _ in range(5):
        collector = Collector(blobs, 10, now=lambda: blobs.now, monotonic=lambda: 0)
        collector.carry_out(collector.look())
        blobs.now += 11
    assert len(blobs.keys("v1/images")) == 1
    assert len(blobs.keys("v1/packs")) == 1
    assert await other.use(kept)


async def test_an_image_of_the_node_alone_can_be_put_into_the_store(node: Node, blobs: MemoryBlobs) -> None:
    source = node.home / "a.tar"
    source.write_bytes(files_tar({"data": content(1, 200_000)}))
    image = await ImageStore(node.home / "images").import_path(source, ["a"], CONFIG)
    assert blobs.keys("v1/images") == set()
    await node.images.keep(image.id)
    await node.images.keep(image.id)
    assert len(blobs.keys("v1/images")) == 1
    node.file(image.id).unlink()
    assert await node.use(image.id)


async def test_who_may_know_of_an_image(node: Node) -> None:
    await node.add("a", domain="prja")
    (record,) = node.images.records()
    assert record.is_of("prja")
    assert not record.is_of("prjb")
    await node.add("a", domain="prjb")
    (record,) = node.images.records()
    assert record.is_of("prjb")
    assert [name.domain for name in record.stored] == ["prja", "prjb"]


async def test_a_file_that_was_made_elsewhere_is_stored_if_it_is_said_whose_it_is(
    node: Node, other: Node, blobs: MemoryBlobs
) -> None:
    image_id = await node.add("a", domain="prja")
    made = node.file(image_id)
    await other.images.register_file(made, ["b"], CONFIG)
    assert [record.stored for record in other.images.records()] == [()]
    await other.images.register_file(made, ["b"], CONFIG, node.images.records()[0].sum.digest, domain="prjb")
    (record,) = other.images.records()
    assert [name.domain for name in record.stored] == ["prjb"]
    other.file(image_id).unlink()
    assert await other.use(image_id) == made.read_bytes()


async def test_what_nobody_says_whose_it_is_stays_on_the_node(node: Node, blobs: MemoryBlobs) -> None:
    source = node.home / "a.tar"
    source.write_bytes(files_tar({"data": content(1, 200_000)}))
    await node.images.import_path(source, ["a"], CONFIG)
    assert blobs.keys("v1/packs") | blobs.keys("v1/images") == set()


async def test_what_is_owed_to_the_store_is_there_later(node: Node, other: Node, blobs: MemoryBlobs) -> None:
    image_id = await node.add("a")
    made, origin = node.file(image_id), Origin(kind="file", reference="x", digest="x", platform="x", at="x")
    set_up = await other.images.register_file(made, ["base"], CONFIG, owes="public")
    before = len(blobs.reads)
    await other.images.pay()
    assert len(blobs.reads) == before  # nobody else needs it yet
    await other.images.name(other.images.records()[0], (), origin)
    (record,) = other.images.records()
    assert (record.stored, record.owed) == ((), ("public",))
    blobs.fail = lambda _what, _key: StoreUnavailableError("gone")
    await other.images.pay()
    assert other.images.records()[0].owed == ("public",)
    blobs.fail = lambda _what, _key: None
    await other.images.pay()
    (record,) = other.images.records()
    assert ([name.domain for name in record.stored], record.owed) == (["public"], ())
    await other.images.owe(set_up.id, "prja")
    assert other.images.records()[0].owed == ("prja",)
    await other.images.pay()
    assert [name.domain for name in other.images.records()[0].stored] == ["prja", "public"]


async def test_what_is_owed_is_its_domains_only(node: Node) -> None:
    source = node.home / "made.erofs"
    image_id = await node.add("a", domain="prjb")
    node.file(image_id).rename(source)
    await node.images.remove(image_id)
    await node.images.register_file(source, [], CONFIG, owes="prja")
    (record,) = node.images.records()
    assert record.is_of("prja")
    assert not record.is_of("prjb")
