"""The manifest of an image: immutable, canonical, named by its SHA-256, and all that starting the image needs to know.

A header of JSON, then columns: the frames it needs, and for each stretch of the image which stretch of which frame it
is. The table covers the image from its first block to its last; zeros are said, not left out.
"""

import hashlib
import json
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import zstandard

from sandboxd.packs.keys import PUBLIC, ManifestName, PackName, check_domain, parse_key
from sandboxd.packs.pack import BLOCK, MOST_FRAME_BYTES, DamagedError, FrameTable, inflate

FORMAT: Final = 1
MOST_BYTES: Final = 512 * 1024 * 1024
"""Of a manifest; a million files without two that lie side by side in their frames need some 30 MiB."""
ZEROS: Final = 0xFFFFFFFF
"""The frame of a stretch of zeros."""

_BEGIN: Final = b"SLIMAGE1"
_LENGTHS: Final = struct.Struct("<III")
_LEVEL: Final = 3


@dataclass(slots=True)
class ExtentTable:
    """Stretches of an image in its order, all in blocks of 4 KiB."""

    counts: "array[int]" = field(default_factory=lambda: array("I"))
    frames: "array[int]" = field(default_factory=lambda: array("I"))
    blocks: "array[int]" = field(default_factory=lambda: array("I"))
    """Where in its frame a stretch begins."""

    def __len__(self) -> int:
        return len(self.counts)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        """Go through (block in the image, count, frame, block in the frame)."""
        at = 0
        for count, frame, block in zip(self.counts, self.frames, self.blocks, strict=True):
            yield at, count, frame, block
            at += count

    def add(self, count: int, frame: int, block: int) -> None:
        """Add the next stretch; one that goes on where the last ended makes that longer."""
        if self.counts and self.frames[-1] == frame and (frame == ZEROS or self.blocks[-1] + self.counts[-1] == block):
            self.counts[-1] += count
            return
        self.counts.append(count)
        self.frames.append(frame)
        self.blocks.append(0 if frame == ZEROS else block)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of an image beside its bytes."""

    image: str
    """Digest of the whole file, `sha256:…`: what the image is known by."""
    size_bytes: int
    superblock: str
    meta_bytes: int
    """So much of the start has no content of files: what a reader needs before anything else."""
    config: Mapping[str, Any]
    dropped: Mapping[str, int]
    builder: str
    parent: str | None = None
    """The image it was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image in a store."""

    domain: str
    facts: Facts
    packs: tuple[PackName, ...]
    frames: FrameTable
    extents: ExtentTable

    @property
    def image_hex(self) -> str:
        return self.facts.image.removeprefix("sha256:")

    @property
    def stored_bytes(self) -> int:
        """How much of its packs it needs."""
        return sum(self.frames.stored)


def render(manifest: Manifest) -> tuple[ManifestName, bytes]:
    """Return a manifest's name, which depends on nothing but what it says, and its bytes, compressed."""
    facts = manifest.facts
    header = json.dumps(
        {
            "format": FORMAT,
            "domain": manifest.domain,
            "image": facts.image,
            "size_bytes": facts.size_bytes,
            "superblock": facts.superblock,
            "meta_bytes": facts.meta_bytes,
            "config": facts.config,
            "dropped": facts.dropped,
            "builder": facts.builder,
            "parent": facts.parent,
            "packs": [[pack.domain, pack.hex] for pack in manifest.packs],
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()
    frames, extents = manifest.frames, manifest.extents
    columns = (frames.packs, frames.offsets, frames.stored, frames.raw)
    rows = (extents.counts, extents.frames, extents.blocks)
    raw = b"".join(
        (
            _BEGIN,
            _LENGTHS.pack(len(header), len(frames), len(extents)),
            header,
            *(_little(column) for column in columns),
            bytes(frames.digests),
            *(_little(column) for column in rows),
        )
    )
    name = ManifestName(manifest.domain, manifest.image_hex, hashlib.sha256(raw).hexdigest())
    return name, zstandard.ZstdCompressor(level=_LEVEL).compress(raw)


def parse(data: bytes, name: ManifestName) -> Manifest:
    """Read a manifest, every field of it checked. DamagedError."""
    raw = inflate(data, MOST_BYTES)
    if hashlib.sha256(raw).hexdigest() != name.hex:
        raise DamagedError(f"manifest {name.hex} is not what its name says")
    try:
        manifest = _parse(raw)
    except (ValueError, KeyError, TypeError, struct.error, IndexError) as error:
        raise DamagedError(f"manifest {name.hex} cannot be read: {error}") from error
    if (manifest.domain, manifest.image_hex) != (name.domain, name.image):
        raise DamagedError(f"manifest {name.hex} is of another image")
    _check(manifest)
    return manifest


def _parse(raw: bytes) -> Manifest:
    if not raw.startswith(_BEGIN):
        raise DamagedError("it is no manifest that we know")
    header_bytes, frame_count, extent_count = _LENGTHS.unpack_from(raw, len(_BEGIN))
    at = len(_BEGIN) + _LENGTHS.size
    header = cast("dict[str, Any]", json.loads(raw[at : at + header_bytes]))
    if header["format"] != FORMAT:
        raise DamagedError(f"it has format {header['format']}")
    cursor = _Cursor(raw, at + header_bytes)
    frames = FrameTable(
        packs=cursor.column(frame_count),
        offsets=cursor.column(frame_count),
        stored=cursor.column(frame_count),
        raw=cursor.column(frame_count),
        digests=bytearray(cursor.take(32 * frame_count)),
    )
    extents = ExtentTable(
        counts=cursor.column(extent_count), frames=cursor.column(extent_count), blocks=cursor.column(extent_count)
    )
    if cursor.at != len(raw):
        raise DamagedError("it goes on behind its end")
    return Manifest(
        domain=check_domain(header["domain"]),
        facts=Facts(
            image=str(header["image"]),
            size_bytes=int(header["size_bytes"]),
            superblock=str(header["superblock"]),
            meta_bytes=int(header["meta_bytes"]),
            config=dict(header["config"]),
            dropped={str(what): int(count) for what, count in header["dropped"].items()},
            builder=str(header["builder"]),
            parent=None if header["parent"] is None else str(header["parent"]),
        ),
        packs=tuple(PackName(check_domain(domain), str(each)) for domain, each in header["packs"]),
        frames=frames,
        extents=extents,
    )


def _check(manifest: Manifest) -> None:
    """Refuse a table that names what there is not, or leaves any block of the image out. DamagedError."""
    frames = manifest.frames
    if any(pack.domain not in {PUBLIC, manifest.domain} or parse_key(pack.key) != pack for pack in manifest.packs):
        raise DamagedError("a manifest names content of others")
    if len(frames) and (max(frames.packs) >= len(manifest.packs) or max(frames.raw) > MOST_FRAME_BYTES):
        raise DamagedError("a manifest has a frame that cannot be")
    for _, count, frame, block in manifest.extents:
        if not count or (frame != ZEROS and (frame >= len(frames) or (block + count) * BLOCK > frames.raw[frame])):
            raise DamagedError("a manifest has a stretch beyond its frame")
    if sum(manifest.extents.counts) * BLOCK != manifest.facts.size_bytes:
        raise DamagedError("a manifest does not cover its image")


class _Cursor:
    """Takes columns off bytes."""

    def __init__(self, raw: bytes, at: int) -> None:
        self._raw = raw
        self.at = at

    def take(self, count: int) -> bytes:
        data = self._raw[self.at : self.at + count]
        if len(data) != count:
            raise DamagedError("it is cut off")
        self.at += count
        return data

    def column(self, count: int) -> "array[int]":
        values = array("I")
        values.frombytes(self.take(4 * count))
        if sys.byteorder == "big":
            values.byteswap()
        return values


def _little(values: "array[int]") -> bytes:
    if sys.byteorder == "big":
        values = array("I", values)
        values.byteswap()
    return values.tobytes()
