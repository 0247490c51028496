"""Layers over layers: what hides what, who wins, what is refused, and what is said to be left out."""

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from threading import Event

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_kit import LIMITS, build, check, files_tar, listing, plain_tar
from sandboxd.images.erofs import ImageBuildError, SourceDamagedError, SourceTooLargeError
from sandboxd.images.layers import LayerFile, build_from_layers, build_from_tar
from sandboxd.images.tree import ImportLimits

Files = dict[str, bytes] | list[tuple[str, bytes]]


def result(home: Path, *layers: Files | bytes) -> dict[str, bytes | str]:
    image, _ = build(home, *(layer if isinstance(layer, bytes) else files_tar(layer) for layer in layers))
    check(image)
    return listing(image, home / "mount")


LOWER: Files = {"a": b"1", "b": b"1", "d/x": b"1", "d/y/z": b"1", "o/p/q": b"1", "o/r": b"1"}

STACKS: dict[str, tuple[list[Files], dict[str, bytes | str]]] = {
    "a file over a file": ([{"a": b"1"}, {"a": b"2"}], {"a": b"2"}),
    "a whiteout": ([{"a": b"1", "b": b"1"}, {".wh.a": b""}], {"b": b"1"}),
    "a whiteout of a directory": ([{"d/x": b"1", "b": b"1"}, {".wh.d": b""}], {"b": b"1"}),
    "a whiteout of nothing": ([{"a": b"1"}, {".wh.b": b"", "none/.wh.x": b""}], {"a": b"1"}),
    "a whiteout, then the name again": ([{"a": b"1"}, {".wh.a": b"", "a": b"2"}], {"a": b"2"}),
    "the name again, then the whiteout": ([{"a": b"1"}, {"a": b"2", ".wh.a": b""}], {"a": b"2"}),
    "a directory again, then its whiteout": ([{"d/x": b"1"}, {"d/y": b"2", ".wh.d": b""}], {"d/y": b"2"}),
    "a whiteout twice": ([{"a": b"1"}, {".wh.a": b""}, {".wh.a": b""}], {}),
    "back after a whiteout": ([{"a": b"1"}, {".wh.a": b""}, {"a": b"3"}], {"a": b"3"}),
    "opaque": ([LOWER, {"o/.wh..wh..opq": b"", "o/new": b"2", ".wh.d": b""}], {"a": b"1", "b": b"1", "o/new": b"2"}),
    "opaque at the end": ([{"o/a": b"1"}, {"o/new": b"2", "o/.wh..wh..opq": b""}], {"o/new": b"2"}),
    "opaque below": ([{"o/p/q": b"1"}, {"o/p/n": b"2", "o/.wh..wh..opq": b""}], {"o/p/n": b"2"}),
    "opaque again and again": (
        [{"o/a": b"1"}, {"o/.wh..wh..opq": b"", "o/b": b"2"}, {"o/.wh..wh..opq": b"", "o/c": b"3"}],
        {"o/c": b"3"},
    ),
    "opaque everything": ([LOWER, {".wh..wh..opq": b"", "only": b"2"}], {"only": b"2"}),
    "notes of aufs": ([{"a": b"1"}, {".wh..wh.aufs": b"", ".wh..wh.plnk/x": b""}], {"a": b"1"}),
    "a file over a directory": ([{"d/x": b"1"}, {"d": b"2"}], {"d": b"2"}),
    "a directory over a file": ([{"d": b"1"}, {"d/": b"", "d/x": b"2"}], {"d/x": b"2"}),
    "and back": ([{"d/x": b"1"}, {"d": b"2"}, {"d/": b"", "d/y": b"3"}], {"d/y": b"3"}),
    "a directory over a directory": ([{"d/x": b"1"}, {"d/": b"", "d/y": b"2"}], {"d/x": b"1", "d/y": b"2"}),
    "a directory over a link": ([{"d/x": b"1", "l": b"-> d"}, {"l/": b"", "l/y": b"2"}], {"d/x": b"1", "l/y": b"2"}),
    "below a file of a lower layer": ([{"d": b"1"}, {"d/x": b"2"}], {"d/x": b"2"}),
    "children before parents": ([[("d/x", b"1"), ("d/", b"")]], {"d/x": b"1"}),
    "the same name twice": ([[("a", b"1"), ("a", b"2")]], {"a": b"2"}),
    "absolute and dotted names": (
        [[("/a", b"1"), ("./b", b"2"), (".//c/./d", b"3")]],
        {"a": b"1", "b": b"2", "c/d": b"3"},
    ),
    "through a link": (
        [{"usr/lib/": b"", "lib": b"-> usr/lib"}, {"lib/x": b"1"}],
        {"lib": "-> usr/lib", "usr/lib/x": b"1"},
    ),
    "through links up and out": (
        [{"out": b"-> ../../../..", "abs": b"-> /usr"}, {"out/x": b"1", "abs/y": b"2"}],
        {"out": "-> ../../../..", "abs": "-> /usr", "x": b"1", "usr/y": b"2"},
    ),
    "hidden through a link": ([{"d/x": b"1", "l": b"-> d"}, {"l/.wh.x": b""}], {"d/": b"", "l": "-> d"}),
    "a link to a lower layer": ([{"a": b"1"}, {"b": b"=> a"}], {"a": b"1", "b": b"1"}),
    "a link to what goes": ([{"a": b"1"}, {"b": b"=> a", ".wh.a": b""}], {"b": b"1"}),
    "a link stays when its directory is emptied": (
        [{"a": b"1", "o/x": b"1"}, {"o/l": b"=> a", "o/.wh..wh..opq": b""}],
        {"a": b"1", "o/l": b"1"},
    ),
    "a link to itself": ([{"a": b"1"}, {"a": b"=> a"}], {"a": b"1"}),
    "a link to a symbolic link": ([[("s", b"-> x"), ("h", b"=> s")]], {"s": "-> x", "h": "-> x"}),
}


@pytest.mark.parametrize("what", STACKS)
def test_what_lies_over_what(tmp_path: Path, what: str) -> None:
    layers, wanted = STACKS[what]
    assert result(tmp_path, *layers) == (wanted or {"/": b""})


def by_the_book(layers: list[list[tuple[str, str]]]) -> set[str]:
    """The same rules, on sets of names: a layer's whiteouts first, then what it brings."""
    there: set[str] = set()
    for layer in layers:
        for name, kind in layer:
            if kind == "hide":
                there = {other for other in there if other != name and not other.startswith(name + "/")}
            elif kind == "opaque":
                there = {other for other in there if not other.startswith(name + "/")}
        for name, kind in layer:
            if kind == "file":
                parents = {name[:at] for at in range(len(name)) if name[at] == "/"}
                there = {other for other in there - parents if not other.startswith(name + "/")} | {name}
    return there


_paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
_rows = st.tuples(_paths, st.sampled_from(["file", "file", "hide", "opaque"]))


@settings(
    deadline=None, max_examples=60, suppress_health_check=(HealthCheck.function_scoped_fixture, HealthCheck.too_slow)
)
@given(layers=st.lists(st.lists(_rows, max_size=6), min_size=1, max_size=4), order=st.randoms())
def test_layers_go_by_the_book(tmp_path: Path, layers: list[list[tuple[str, str]]], order: Random) -> None:
    ordered: list[Files] = []
    plain: list[list[tuple[str, str]]] = []
    for layer in layers:
        files = {name for name, kind in layer if kind == "file"}
        # A name that is a file here and a directory there is no layer that any builder writes.
        rows = [row for row in dict.fromkeys(layer) if row[1] != "file" or not _below(row[0], files)]
        rows = [row for row in rows if row[1] == "file" or not _under(row[0], files)]
        order.shuffle(rows)
        plain.append(rows)
        ordered.append([(_as_member(*row), b"x") for row in rows])
    found = {name for name in result(tmp_path, *ordered) if not name.endswith("/")}
    assert found == by_the_book(plain)


def _below(name: str, files: set[str]) -> bool:
    return any(name.startswith(other + "/") for other in files)


def _under(name: str, files: set[str]) -> bool:
    return name in files or _below(name, files)


def _as_member(name: str, kind: str) -> str:
    parent, _, last = name.rpartition("/")
    prefix = f"{parent}/" if parent else ""
    return {"file": name, "hide": f"{prefix}.wh.{last}", "opaque": f"{name}/.wh..wh..opq"}[kind]


REFUSED: dict[str, tuple[list[Files], str]] = {
    "out": ([{"../x": b""}], "leads out of the root"),
    "out below": ([{"a/../../x": b""}], "leads out of the root"),
    "a whiteout out": ([{"../.wh.x": b""}], "leads out of the root"),
    "a whiteout of the directory": ([{"a/.wh..": b""}], "hides what has no name"),
    "a whiteout of its parent": ([{"a/.wh...": b""}], "hides what has no name"),
    "a whiteout of no name": ([{".wh.": b""}], "hides what has no name"),
    "a link out": ([{"l": b"=> ../../etc/passwd"}], "leads out of the root"),
    "a link to nothing": ([{"l": b"=> x"}], "hard link to nothing"),
    "a link to a directory": ([{"d/": b"", "l": b"=> d"}], "hard link to a directory"),
    "a loop": ([{"l": b"-> l"}, {"l/x": b""}], "links without end"),
    "a loop of two": ([{"l": b"-> m", "m": b"-> l"}, {"l/x": b""}], "links without end"),
    "below a file of the same layer": ([[("f", b""), ("f/x", b"")]], "no directory"),
    "a root that is a file": ([{"./": b"", "/": b"x", ".": b"x"}], "root of a layer"),
    "an endless name": ([{"n" * 256: b""}], "no name a file can have"),
    "too deep": ([{"d/" * 200 + "x": b""}], "too deep"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_layer_may_hold(tmp_path: Path, what: str) -> None:
    layers, words = REFUSED[what]
    with pytest.raises(ImageBuildError, match=words):
        result(tmp_path, *layers)
    assert not (tmp_path / "image.erofs").exists()
    assert not (tmp_path / "content").exists()


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    def special(name: str, kind: bytes) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type = kind
        return info

    marked = tarfile.TarInfo("ping")
    marked.pax_headers = {"SCHILY.xattr.security.capability": "\x01", "SCHILY.xattr.user.x": "y"}
    lower = files_tar({"p0": b"gone", "kept": b"1"})
    upper = plain_tar(
        special("null", tarfile.CHRTYPE),
        special("disk", tarfile.BLKTYPE),
        *(special(f"p{number}", tarfile.FIFOTYPE) for number in range(9)),
        marked,
    )
    image, built = build(tmp_path, lower, upper)
    assert built.dropped == {"devices": 2, "pipes": 9, "file capabilities": 1, "extended attributes": 1}
    assert built.dropped.names("devices") == ["null", "disk"]
    assert built.dropped.names("pipes") == ["p0", "p1", "p2", "p3", "p4"]
    assert listing(image, tmp_path / "mount") == {"kept": b"1", "ping": b""}


NOISE = hashlib.shake_256(b"").digest(300_000)
WHOLE = files_tar({"f": NOISE, "g": b"x"})


@pytest.mark.parametrize("compress", ["", "gzip", "zstd"])
def test_however_a_layer_is_compressed(tmp_path: Path, compress: str) -> None:
    _, plain = build(tmp_path / "plain", WHOLE)
    _, built = build(tmp_path / "other", WHOLE, compress=compress)
    assert built.sum == plain.sum


def packed(data: bytes) -> dict[str, bytes]:
    zstd = zstandard.ZstdCompressor(write_checksum=True)
    frames = zstd.compress(data[:5000]) + zstd.compress(data[5000:])
    return {"gzip": gzip.compress(data[:7000]) + gzip.compress(data[7000:]), "zstd": frames}


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_several_members_are_one_layer(tmp_path: Path, form: str) -> None:
    (tmp_path / "layer").write_bytes(packed(WHOLE)[form] + (bytes(700) if form == "gzip" else b""))
    layer = LayerFile(tmp_path / "layer", "", None)
    built = build_from_layers([layer], tmp_path / "image", spool=tmp_path, limits=LIMITS)
    assert built.sum == build(tmp_path / "plain", WHOLE)[1].sum


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "cut at the end": lambda data: data[:-5],
    "a byte": lambda data: data[:5000] + bytes([data[5000] ^ 0xFF]) + data[5001:],
    "more behind": lambda data: data + b"something else",
    "the start only": lambda data: data[:10],
}


@pytest.mark.parametrize("form", ["gzip", "zstd", "bz2", "xz"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_layers_are_refused(tmp_path: Path, form: str, damage: str) -> None:
    if form in packed(b""):
        blob = packed(WHOLE)[form]
    else:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w:bz2" if form == "bz2" else "w:xz") as archive:
            info = tarfile.TarInfo("f")
            info.size = 300_000
            archive.addfile(info, io.BytesIO(NOISE))
        blob = made.getvalue()
    (tmp_path / "layer").write_bytes(DAMAGE[damage](blob))
    with pytest.raises(SourceDamagedError):
        build_from_tar(tmp_path / "layer", tmp_path / "image", spool=tmp_path, limits=LIMITS)


def test_a_layer_is_what_its_digest_says(tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(gzip.compress(WHOLE))
    layer = LayerFile(tmp_path / "layer", "", "sha256:" + "0" * 64)
    with pytest.raises(SourceDamagedError, match="uncompressed, not sha256:000"):
        build_from_layers([layer], tmp_path / "image", spool=tmp_path, limits=LIMITS)


def bomb(home: Path, blob: bytes, **limits: int) -> None:
    (home / "layer").write_bytes(blob)
    layer = LayerFile(home / "layer", "", None)
    build_from_layers([layer], home / "image", spool=home, limits=ImportLimits(**limits))


def test_bombs_are_refused_by_name(tmp_path: Path) -> None:
    zeros = tarfile.TarInfo("z")
    zeros.size = 3 << 30
    compressor = zstandard.ZstdCompressor().compressobj()
    blob = compressor.compress(zeros.tobuf())
    for _ in range(3 << 10):
        blob += compressor.compress(bytes(1 << 20))
    blob += compressor.compress(bytes(1024)) + compressor.flush()
    assert len(blob) < 1 << 20
    with pytest.raises(SourceTooLargeError, match="times as large"):
        bomb(tmp_path, blob)
    with pytest.raises(SourceTooLargeError, match="more than 1000000 bytes"):
        bomb(tmp_path, blob, size_bytes=1_000_000)
    with pytest.raises(SourceTooLargeError, match="more than 1048576 bytes"):
        bomb(tmp_path, gzip.compress(WHOLE + bytes(1 << 24)), size_bytes=1 << 20, entries=100)
    assert not (tmp_path / "image").exists()


def test_links_cannot_cost_more_than_they_are_worth(tmp_path: Path) -> None:
    """A few bytes a member that each ask for thousands of steps."""
    chain = {f"l{number}": b"-> " + b"d/../" * 600 + f"l{number + 1}".encode() for number in range(39)}
    many = [(f"{'l0' if number % 2 else 'd'}/{number}", b"") for number in range(3000)]
    with pytest.raises(ImageBuildError, match="links without end"):
        result(tmp_path, {"d/": b""}, dict(chain), many)


def test_hiding_again_and_again_costs_nothing(tmp_path: Path) -> None:
    """Each marker would go through all that its own layer has there."""
    rows = [(f"o/{number}", b"") for number in range(20_000)] + [("o/.wh..wh..opq", b"")] * 20_000
    assert len(result(tmp_path, {"o/x": b"1"}, rows)) == 20_000


def test_work_can_be_stopped(tmp_path: Path) -> None:
    stop = Event()
    stop.set()
    (tmp_path / "layer").write_bytes(WHOLE)
    with pytest.raises(ImageBuildError, match="stopped"):
        build_from_tar(tmp_path / "layer", tmp_path / "image", spool=tmp_path, limits=LIMITS, stop=stop)
    assert sorted(os.listdir(tmp_path)) == ["layer"]  # noqa: PTH208 - names only
