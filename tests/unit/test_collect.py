"""The collector deletes what nobody needs, and nothing else, whatever goes on meanwhile: as a model, and by cases."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from packs_kit import MemoryBlobs
from sandboxd.packs.blobs import BlobError, StoreUnavailableError
from sandboxd.packs.collect import Collector, Plan, StaleError
from sandboxd.packs.intents import LIVES_SECONDS, Writing
from sandboxd.packs.keys import ManifestName, PackName, parse_key, tombstone_of
from sandboxd.packs.manifest import ExtentTable, Facts, Manifest, parse, render
from sandboxd.packs.pack import BLOCK, DamagedError, Frame, FrameTable

GRACE = 1000.0
HOUR = 3600.0


def image_hex(number: int) -> str:
    return f"{number:064x}"


def pack_name(content: int) -> PackName:
    return PackName("public", f"{content:064x}")


def manifest_of(image: int, packs: list[PackName]) -> tuple[ManifestName, bytes]:
    """A manifest with one frame in each pack."""
    frames, extents = FrameTable(), ExtentTable()
    for number in range(len(packs)):
        frames.set(frames.reserve(), number, Frame(8, BLOCK, BLOCK, b"x" * 32))
        extents.add(1, number, 0)
    facts = Facts(
        image=f"sha256:{image_hex(image)}",
        size_bytes=len(packs) * BLOCK,
        superblock="",
        meta_bytes=0,
        config={},
        dropped={},
        builder="model",
    )
    return render(Manifest(domain="public", facts=facts, packs=tuple(packs), frames=frames, extents=extents))


@dataclass
class Import:
    """One that is under way: an image of some contents; those that lie in a pack already are built on."""

    image: int
    contents: list[int]
    writing: Writing
    there: set[PackName] = field(default_factory=set[PackName])
    packs: list[PackName] = field(default_factory=list[PackName])
    name: ManifestName | None = None
    data: bytes = b""


class Collecting(RuleBasedStateMachine):
    """Imports, nodes that come and go, tags, time, and collections whose looks and deeds lie apart."""

    imports = Bundle("imports")
    stored = Bundle("stored")
    plans = Bundle("plans")

    def __init__(self) -> None:
        super().__init__()
        self.blobs = MemoryBlobs(now=10 * LIVES_SECONDS)
        self.collector = Collector(self.blobs, GRACE, now=lambda: self.blobs.now, monotonic=lambda: self.blobs.now)
        self.held: dict[int, ManifestName] = {}
        """What the one node has, as it told the store."""
        self.tags: set[int] = set()
        # What an import left that died.
        for content in (1, 2, 3):
            self.blobs.put(pack_name(content).key, b"pack")

    @rule(target=imports, image=st.integers(1, 3), contents=st.sets(st.integers(1, 3), min_size=1))
    def begin(self, image: int, contents: set[int]) -> Import:
        return self.begun(image, contents)

    @rule(target=imports, image=st.integers(1, 3), contents=st.sets(st.integers(1, 3), min_size=1))
    def begin_and_look(self, image: int, contents: set[int]) -> Import:
        return self.looked(self.begun(image, contents))

    def begun(self, image: int, contents: set[int]) -> Import:
        writing = Writing(self.blobs, clock=lambda: self.blobs.now)
        writing.begin()
        return Import(image * 1000 + sum(1 << each for each in contents), sorted(contents), writing)

    def looked(self, made: Import) -> Import:
        names = (parse_key(blob.key) for blob in self.blobs.list("v1/packs"))
        made.there = {name for name in names if isinstance(name, PackName)} - made.writing.avoids
        return made

    @rule(target=imports, made=consumes(imports))
    def look_what_is_there(self, made: Import) -> Import:
        return self.looked(made)

    @rule(target=imports, made=consumes(imports))
    def store_and_publish(self, made: Import) -> Import:
        """Write each content, or build on the pack that has it; then the manifest."""
        for content in made.contents[len(made.packs) :]:
            name = next((each for each in made.there if int(each.hex, 16) % 100 == content), None)
            if name is None:
                # Another pack each time: what is condemned is not written again under its name.
                name = pack_name(int(self.blobs.now) * 10_000_000 + len(self.blobs.reads) * 100 + content)
                self.blobs.put(name.key, b"pack")
            made.packs.append(name)
        if made.name is None:
            made.writing.protect(image_hex(made.image))
            made.writing.go_on()
            made.name, made.data = manifest_of(made.image, made.packs)
            self.blobs.put(made.name.key, made.data)
        return made

    @rule(target=stored, made=consumes(imports))
    def finish(self, made: Import) -> ManifestName | MultipleResults[ManifestName]:
        """The node knows the image, says so, and only then lets go of the intent."""
        if made.name is None:
            made.writing.end()
            return multiple()
        self.held[made.image] = made.name
        self.tell()
        made.writing.end()
        return made.name

    @rule(made=consumes(imports))
    def die(self, made: Import) -> None:
        """The intent stays."""

    @rule()
    def forget_the_oldest(self) -> None:
        """An image is removed from the node."""
        for image in list(self.held)[:1]:
            del self.held[image]
            self.tell()

    @rule(name=stored)
    def tag(self, name: ManifestName) -> None:
        """Somebody names an image; that is only allowed for one that a node still has."""
        if any(name == held for held in self.held.values()):
            self.tags.add(int(name.image, 16))

    @rule()
    def untag(self) -> None:
        self.tags.clear()

    @rule(seconds=st.sampled_from([1.0, GRACE / 2, GRACE + 1]))
    def time_goes_by(self, seconds: float) -> None:
        self.blobs.now += seconds

    @rule()
    def collect(self) -> None:
        self.collector.carry_out(self.collector.look(image_hex(each) for each in self.tags))

    @rule()
    def collect_and_collect_again(self) -> None:
        """All of it at once, or a long list of steps would seldom come together."""
        self.collect()
        self.blobs.now += GRACE + 1
        self.collect()

    @rule(target=plans)
    def look(self) -> Plan:
        return self.collector.look(image_hex(each) for each in self.tags)

    @rule(plan=consumes(plans))
    def carry_out(self, plan: Plan) -> None:
        try:
            self.collector.carry_out(plan)
        except StaleError:
            return

    @precondition(lambda self: not self.blobs.keys("v1/intents"))
    @rule()
    def collect_for_a_long_time(self) -> None:
        """With nothing under way, only what is needed is left."""
        for _ in range(5):
            self.collector.carry_out(self.collector.look(image_hex(each) for each in self.tags))
            self.blobs.now += GRACE + 1
        needed = {image_hex(each) for each in self.tags | set(self.held)}
        names = [parse_key(key) for key in self.blobs.objects]
        manifests = [name for name in names if isinstance(name, ManifestName)]
        assert {name.image for name in manifests} <= needed
        used = {pack for name in manifests for pack in self.read(name).packs}
        assert {name for name in names if isinstance(name, PackName)} == used
        assert self.blobs.keys("v1/condemned") == set()

    @invariant()
    def whatever_is_needed_is_whole(self) -> None:
        for name in self.held.values():
            manifest = self.read(name)
            assert all(pack.key in self.blobs.objects for pack in manifest.packs)

    def tell(self) -> None:
        self.blobs.put("v1/nodes/one", json.dumps([image_hex(each) for each in self.held]).encode())
        for image, name in self.held.items():
            if name.key not in self.blobs.objects:
                raise AssertionError(f"the manifest of {image} is gone though its node has it")

    def read(self, name: ManifestName) -> Manifest:
        return parse(self.blobs.objects[name.key][0], name)


TestCollecting = Collecting.TestCase
TestCollecting.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@dataclass
class Stand:
    """A store with some images, and a collector with clocks of its own."""

    blobs: MemoryBlobs = field(default_factory=lambda: MemoryBlobs(now=10 * LIVES_SECONDS))
    slept: float = 0.0

    @property
    def collector(self) -> Collector:
        return Collector(self.blobs, GRACE, now=lambda: self.blobs.now, monotonic=lambda: self.slept)

    def image(self, number: int, *packs: int) -> ManifestName:
        for pack in packs:
            self.blobs.put(pack_name(pack).key, b"pack" * 100)
        name, data = manifest_of(number, [pack_name(pack) for pack in packs])
        self.blobs.put(name.key, data)
        return name

    def collect(self, *tags: int, wait: float = 0.0) -> Plan:
        self.blobs.now += wait
        plan = self.collector.look(image_hex(tag) for tag in tags)
        self.collector.carry_out(plan)
        return plan

    def there(self) -> set[str]:
        return {key for key in self.blobs.objects if parse_key(key) is not None}


def test_what_is_tagged_stays_and_the_rest_goes_after_two_times_of_grace() -> None:
    stand = Stand()
    kept, gone = stand.image(1, 10, 11), stand.image(2, 11, 12)
    assert stand.collect(1).condemn == [gone]
    assert stand.collect(1, wait=GRACE / 2).delete == []
    assert stand.collect(1, wait=GRACE).delete == [gone]
    assert pack_name(12).key in stand.there()
    stand.collect(1)
    stand.collect(1, wait=GRACE + 1)
    assert stand.there() == {kept.key, pack_name(10).key, pack_name(11).key}
    assert stand.blobs.keys("v1/condemned") == set()


def test_a_rehearsal_changes_nothing() -> None:
    stand = Stand()
    stand.image(1, 10)
    before = dict(stand.blobs.objects)
    plan = stand.collector.look()
    assert plan.bytes_of(plan.condemn) > 0
    assert stand.blobs.objects == before


def test_what_is_needed_again_is_spared() -> None:
    stand = Stand()
    name = stand.image(1, 10)
    stand.collect()
    assert stand.collect(1, wait=GRACE + 1).spare == [name]
    assert stand.collect(1, wait=GRACE + 1).delete == []
    assert stand.blobs.keys("v1/condemned") == set()


def test_what_a_node_says_it_has_stays() -> None:
    stand = Stand()
    name = stand.image(1, 10)
    stand.blobs.put("v1/nodes/a", json.dumps([name.image]).encode())
    assert stand.collect().condemn == []
    stand.blobs.put("v1/nodes/a", b"{")
    with pytest.raises(BlobError, match="nobody knows"):
        stand.collector.look()


def test_an_import_keeps_what_it_may_build_on() -> None:
    stand = Stand()
    stand.blobs.put(pack_name(10).key, b"pack")
    writing = Writing(stand.blobs)
    writing.begin()
    stand.collect()
    assert stand.collect(wait=GRACE + 1).delete == []
    writing.end()
    assert stand.collect().delete == [pack_name(10)]


def test_an_import_that_begins_later_does_not_build_on_what_is_condemned() -> None:
    stand = Stand()
    stand.blobs.put(pack_name(10).key, b"pack")
    stand.collect()
    writing = Writing(stand.blobs)
    writing.begin()
    assert writing.avoids == {pack_name(10)}
    assert stand.collect(wait=GRACE + 1).delete == [pack_name(10)]


def test_the_intent_of_a_dead_one_holds_nothing_for_ever() -> None:
    stand = Stand()
    stand.blobs.put(pack_name(10).key, b"pack")
    Writing(stand.blobs).begin()
    stand.collect()
    assert stand.collect(wait=LIVES_SECONDS - 1).delete == []
    assert stand.collect(wait=2).delete == [pack_name(10)]
    assert stand.blobs.keys("v1/intents") == set()


def test_a_collector_that_slept_deletes_nothing() -> None:
    stand = Stand()
    stand.image(1, 10)
    stand.collect()
    stand.blobs.now += GRACE + 1
    plan = stand.collector.look()
    stand.slept += HOUR
    with pytest.raises(StaleError):
        stand.collector.carry_out(plan)
    assert len(stand.there()) == 2


def test_a_manifest_that_cannot_be_read_stops_everything() -> None:
    stand = Stand()
    name = stand.image(1, 10)
    stand.blobs.put(name.key, b"damaged")
    with pytest.raises(DamagedError, match="nobody knows"):
        stand.collector.look([name.image])
    assert len(stand.there()) == 2


@pytest.mark.parametrize("after", range(6))
def test_a_collection_that_is_cut_off_anywhere_is_finished_by_the_next(after: int) -> None:
    stand = Stand()
    kept = stand.image(1, 10, 11)
    stand.image(2, 11, 12)
    for _ in range(6):
        steps: Iterator[int] = iter(range(after))

        def fail(what: str, key: str, steps: Iterator[int] = steps) -> BlobError | None:
            if what in {"put", "delete"} and next(steps, None) is None:
                return StoreUnavailableError("gone")
            return None

        plan = stand.collector.look([image_hex(1)])
        stand.blobs.fail = fail
        with suppress(StoreUnavailableError):
            stand.collector.carry_out(plan)
        stand.blobs.fail = lambda _what, _key: None
        stand.blobs.now += GRACE + 1
        manifest = parse(stand.blobs.objects[kept.key][0], kept)
        assert {pack.key for pack in manifest.packs} <= stand.there()
    for _ in range(6):
        stand.collect(1, wait=GRACE + 1)
    assert stand.there() == {kept.key, pack_name(10).key, pack_name(11).key}


def test_tombstones_of_what_is_gone_go_too() -> None:
    stand = Stand()
    stand.blobs.put(tombstone_of(pack_name(10)), b"{}")
    assert cast("list[object]", stand.collect().spare) == [pack_name(10)]
    assert stand.blobs.objects == {}
