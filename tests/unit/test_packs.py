"""Packs and manifests: what goes in comes out; what is damaged anywhere is refused; the same says the same."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from packs_kit import MemoryBlobs
from sandboxd.packs.keys import ManifestName, PackName, check_domain, parse_key, parse_tombstone, tombstone_of
from sandboxd.packs.manifest import ZEROS, ExtentTable, Facts, Manifest, parse, render
from sandboxd.packs.pack import (
    BLOCK,
    DamagedError,
    Frame,
    FrameTable,
    PackWriter,
    check_pack,
    parse_index,
    press,
    read_index,
)

HEX = "ab" * 32
FACTS = Facts(
    image=f"sha256:{HEX}",
    size_bytes=6 * BLOCK,
    superblock="cd" * 32,
    meta_bytes=BLOCK,
    config={"env": {"A": "1"}},
    dropped={"xattr": 2},
    builder="test",
)


def make_manifest() -> Manifest:
    frames = FrameTable()
    frames.set(frames.reserve(), 0, Frame(8, 100, 4 * BLOCK, b"a" * 32))
    frames.set(frames.reserve(), 1, Frame(8, BLOCK, BLOCK, b"b" * 32))
    extents = ExtentTable()
    extents.add(2, 0, 1)
    extents.add(1, ZEROS, 0)
    extents.add(1, ZEROS, 0)
    extents.add(1, 0, 3)
    extents.add(1, 1, 0)
    packs = (PackName("public", "11" * 32), PackName("prj1", "22" * 32))
    return Manifest(domain="prj1", facts=FACTS, packs=packs, frames=frames, extents=extents)


def test_a_manifest_says_the_same_again() -> None:
    manifest = make_manifest()
    name, data = render(manifest)
    assert parse(data, name) == manifest
    assert render(parse(data, name)) == (name, data)
    assert name.key == f"v1/images/{HEX}/prj1/{name.hex}"
    assert list(manifest.extents) == [(0, 2, 0, 1), (2, 2, ZEROS, 0), (4, 1, 0, 3), (5, 1, 1, 0)]
    other, _ = render(replace(manifest, facts=replace(FACTS, config={})))
    assert other.hex != name.hex


@given(st.integers(0, 1 << 30), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_damaged_manifest_is_refused(at: int, change: int) -> None:
    name, data = render(make_manifest())
    damaged = bytearray(data)
    damaged[at % len(data)] ^= change
    try:
        assert parse(bytes(damaged), name) == make_manifest()  # some bits of a header mean nothing
    except DamagedError:
        return


WRONG: dict[str, Callable[[Manifest], Manifest]] = {
    "does not cover its image": lambda made: replace(made, facts=replace(FACTS, size_bytes=7 * BLOCK)),
    "names no pack": lambda made: replace(made, packs=made.packs[:1]),
    "names content of others": lambda made: replace(made, packs=(PackName("prj2", "11" * 32), made.packs[1])),
    "leads outside": lambda made: replace(made, packs=(PackName("public", "11/../.."), made.packs[1])),
    "domain": lambda made: replace(made, domain="../x"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_manifest_that_cannot_be_is_refused_though_its_name_is_right(change: Callable[[Manifest], Manifest]) -> None:
    name, data = render(change(make_manifest()))
    with pytest.raises(DamagedError):
        parse(data, name)


def test_a_stretch_beyond_its_frame_is_refused() -> None:
    manifest = make_manifest()
    manifest.extents.counts[0] = 4
    manifest.extents.counts[1] = 0
    name, data = render(manifest)
    with pytest.raises(DamagedError, match="beyond its frame"):
        parse(data, name)


def test_a_manifest_under_the_name_of_another_image_is_refused() -> None:
    name, data = render(make_manifest())
    with pytest.raises(DamagedError):
        parse(data, replace(name, image="cd" * 32))
    with pytest.raises(DamagedError):
        parse(data, replace(name, domain="public"))


def test_a_manifest_that_would_fill_the_memory_is_refused() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(600 << 20))
    with pytest.raises(DamagedError):
        parse(bomb, ManifestName("public", HEX, "00" * 32))


def test_a_pack_has_what_was_put_into_it() -> None:
    writer = PackWriter()
    text, noise = b"some words " * 30_000, hashlib.shake_128(b"1").digest(300_000)
    frames = [writer.add(press(raw), [(hashlib.sha256(raw).digest(), len(raw), 0)]) for raw in (text, noise)]
    hexed, data = writer.finish()
    assert frames[0].stored < len(text) // 10
    assert frames[1].stored == len(noise)
    assert [frame.open(data[frame.offset : frame.offset + frame.stored]) for frame in frames] == [text, noise]
    name, blobs = PackName("public", hexed), MemoryBlobs()
    blobs.put(name.key, data)
    index = read_index(blobs, name, len(data))
    assert index == writer.index
    assert [unit.digest for unit in index.units] == [hashlib.sha256(raw).digest() for raw in (text, noise)]
    check_pack(data, name)


@given(st.integers(0, 1 << 30), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_no_damaged_byte_of_a_pack_becomes_content(at: int, change: int) -> None:
    writer = PackWriter()
    raw = b"words " * 1000 + hashlib.shake_128(b"2").digest(5000)
    frame = writer.add(press(raw), [(hashlib.sha256(raw).digest(), len(raw), 0)])
    hexed, data = writer.finish()
    damaged = bytearray(data)
    damaged[at % len(data)] ^= change
    with pytest.raises(DamagedError):
        check_pack(bytes(damaged), PackName("public", hexed))
    try:
        assert frame.open(bytes(damaged[frame.offset : frame.offset + frame.stored])) == raw
    except DamagedError:
        return


@pytest.mark.parametrize("cut", [0, 1, 30, 60, 100, 5000])
def test_a_pack_that_is_cut_off_has_no_index(cut: int) -> None:
    writer = PackWriter()
    writer.add(press(b"words " * 10_000), [])
    hexed, data = writer.finish()
    name, blobs = PackName("public", hexed), MemoryBlobs()
    blobs.put(name.key, data[:cut])
    with pytest.raises(DamagedError):
        read_index(blobs, name, min(cut, len(data) - 1))


def test_an_index_cannot_point_outside_its_pack() -> None:
    writer = PackWriter()
    writer.add(press(bytes(5000)), [(b"x" * 32, 5000, 0)])
    raw = writer.index.render()
    assert parse_index(raw, writer.size) == writer.index
    with pytest.raises(DamagedError):
        parse_index(raw, writer.size - 1)
    with pytest.raises(DamagedError):
        parse_index(raw + b"x", writer.size)
    writer.index.units[0] = replace(writer.index.units[0], block=1)
    with pytest.raises(DamagedError):
        parse_index(writer.index.render(), writer.size)


def test_a_frame_becomes_no_more_than_it_says() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(50 << 20))
    with pytest.raises(DamagedError):
        Frame(8, len(bomb), 4096, hashlib.sha256(bytes(4096)).digest()).open(bomb)


def test_keys_are_read_as_they_are_written() -> None:
    for name in (PackName("public", HEX), ManifestName("prj1", HEX, "cd" * 32)):
        assert parse_key(name.key) == name
        assert parse_tombstone(tombstone_of(name)) == name
    for key in ("v1/packs/public/ab", "v2/packs/public/" + HEX, f"v1/packs/Public/{HEX}", "v1/nodes/x", ""):
        assert parse_key(key) is None
    for domain in ("", "a/b", "..", "A", "x" * 65):
        with pytest.raises(ValueError, match="domain"):
            check_domain(domain)
