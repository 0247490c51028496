"""Images as we write them, read by others: the kernel, fsck.erofs, and our own check of what the sentry takes."""

import hashlib
import os
import re
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_kit import (
    LIMITS,
    Made,
    Tree,
    build,
    check,
    files_tar,
    info_of,
    mounted,
    plain_tar,
    read_back,
    resolved,
    to_tar,
    trees,
)
from sandboxd.images import erofs
from sandboxd.images.content import UNIT_BYTES, Contents, Spool
from sandboxd.images.crc32c import crc32c
from sandboxd.images.erofs_layout import BLOCK, dirent_blocks, full_blocks, is_inline, listed
from sandboxd.images.erofs_writer import write_image
from sandboxd.images.filetree import FileTree
from sandboxd.images.layers import build_from_directory

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)


def compare(home: Path, tree: Tree) -> None:
    image, built = build(home, to_tar(tree))
    check(image)
    assert erofs.sum_up(image) == built.sum
    with mounted(image, home / "mount") as root:
        found, links = read_back(root)
    wanted, wanted_links = resolved(tree)
    assert found == wanted
    assert links == wanted_links


@settings(deadline=None, max_examples=40, suppress_health_check=SLOW)
@given(tree=trees())
def test_the_kernel_reads_every_attribute(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as home:
        compare(Path(home), tree)


SPECIAL: dict[str, Callable[[], Tree]] = {
    "empty": lambda: {b"": Made("directory", 0o755)},
    "wide": lambda: {b"": Made("directory", 0o755)} | {b"%06d" % number: Made("file") for number in range(20_000)},
    "long names": lambda: {b"": Made("directory")} | {b"%03d" % number * 85: Made("file") for number in range(300)},
    "deep": lambda: {b"/".join([b"d"] * depth): Made("directory", 0o700) for depth in range(120)},
    "links": lambda: (
        {b"": Made("directory"), b"f": Made("file", content=b"x")}
        | {b"l%04d" % number: Made("link", content=b"f") for number in range(3000)}
    ),
    "tails": lambda: (
        {b"": Made("directory")}
        | {b"s%04d" % number: Made("symlink", 0o777, content=b"t" * (1 + number * 7 % 4095)) for number in range(900)}
    ),
    "owners": lambda: (
        {b"": Made("directory", 0o1777, 2**32 - 2, 2**32 - 2, 2**62)}
        | {b"f%d" % bit: Made("file", 0o4755, 1 << bit, 2**31, bit * 10**17 + bit) for bit in range(32)}
    ),
    "around the dots": lambda: (
        {b"": Made("directory")}
        | {bytes([byte]): Made("file") for byte in range(1, 256) if byte not in b"./"}
        | {b"." + bytes([byte]): Made("file") for byte in range(1, 256) if byte not in b"./"}
        | {b"..x": Made("file"), b"...": Made("directory")}
    ),
}


@pytest.mark.parametrize("what", SPECIAL)
def test_the_kernel_reads_what_is_special(tmp_path: Path, what: str) -> None:
    compare(tmp_path, SPECIAL[what]())


@pytest.mark.parametrize("count", [1, 2, 3, 14, 15, 16, 17, 120, 121, 122, 123, 290])
def test_directories_around_the_borders_of_blocks(tmp_path: Path, count: int) -> None:
    for length in (11, 243, 16):
        tree: Tree = {b"": Made("directory"), b"d": Made("directory")}
        tree |= {b"d/" + b"%03d" % number + b"n" * (length - 3): Made("file") for number in range(count)}
        compare(tmp_path / str(length), tree)


def test_a_directory_of_200_000_names(tmp_path: Path) -> None:
    names = [b"%d-%s" % (number, b"n" * (number % 50)) for number in range(200_000)]
    limits = type(LIMITS)(entries=300_000)
    with Spool(tmp_path / "spool") as spool:
        tree, contents = FileTree(limits), Contents(spool)
        content = spool.put(b"all the same")
        for name in sorted(names, key=lambda name: hashlib.sha256(name).digest()):
            tree.file(0, name, content)
        summed, extents = write_image(tree, contents, tmp_path / "image")
    assert len(extents) == 1
    assert summed.size_bytes < 200_000 * 150
    with mounted(tmp_path / "image", tmp_path / "mount") as root:
        assert sorted(os.listdir(os.fsencode(root))) == sorted(names)  # noqa: PTH208 - bytes
        for name in names[::701]:
            assert os.stat(os.fsencode(root) + b"/" + name).st_size == 12  # noqa: PTH116 - bytes
        assert not os.path.exists(os.fsencode(root) + b"/missing")  # noqa: PTH110 - bytes


@settings(deadline=None, max_examples=25, suppress_health_check=SLOW)
@given(tree=trees(), order=st.randoms())
def test_bytes_depend_on_nothing_but_the_tree(tree: Tree, order: Random) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        _, one = build(home / "one", to_tar(tree))
        parents = [path for path, made in tree.items() if made.kind == "directory"]
        others = [path for path, made in tree.items() if made.kind in {"file", "symlink"}]
        order.shuffle(others)
        links = [path for path, made in tree.items() if made.kind == "link"]
        shuffled = {path: tree[path] for path in (*parents, *others, *links)}
        _, two = build(home / "two", to_tar(shuffled, tarfile.PAX_FORMAT), compress="gzip")
        assert one.sum == two.sum
        upper = {path: made for path, made in shuffled.items() if path in others}
        lower = {path: tree[path] for path in parents} | {path: Made("file", content=b"old") for path in others}
        rest = {path: tree[path] for path in links}
        image, three = build(home / "three", to_tar(lower), to_tar(upper), to_tar(rest))
        assert three.sum == one.sum
        assert image.read_bytes() == (home / "one/image.erofs").read_bytes()


def test_what_is_apart_has_another_name(tmp_path: Path) -> None:
    images: list[bytes] = []
    for number, apart in enumerate((b"", b"", b"config")):
        with Spool(tmp_path / f"spool{number}") as spool:
            tree = FileTree(LIMITS)
            tree.file(0, b"f", spool.put(b"x"))
            write_image(tree, Contents(spool), tmp_path / str(number), apart=apart)
        images.append((tmp_path / str(number)).read_bytes())
    assert images[0] == images[1]
    assert images[0] != images[2]
    differing = [at for at in range(len(images[0])) if images[0][at] != images[2][at]]
    assert set(differing) <= {*range(1028, 1032), *range(1072, 1088)}
    for number in (0, 2):
        check(tmp_path / str(number))


def test_the_superblock_is_what_the_sentry_takes(tmp_path: Path) -> None:
    image, built = build(tmp_path, files_tar({"f": b"x", "d/": b""}))
    data = image.read_bytes()
    magic, checksum, compatible = struct.unpack_from("<III", data, 1024)
    assert (magic, compatible & 1) == (0xE0F5E1E2, 1)
    assert struct.unpack_from("<I", data, 1024 + 80) == (0,)
    assert checksum == crc32c(data[1024:1028] + bytes(4) + data[1032:BLOCK])
    assert built.sum.size_bytes == len(data)
    assert len(data) % BLOCK == 0
    assert erofs.read_superblock(image) == hashlib.sha256(data[1024:1152]).hexdigest()
    said = subprocess.run(["dump.erofs", "-s", str(image)], check=True, capture_output=True, text=True).stdout
    assert re.search(r"Filesystem inode count:\s+3\n", said)


def test_files_are_never_inline_and_the_same_content_is_there_once(tmp_path: Path) -> None:
    big = os.urandom(3 * UNIT_BYTES + 5)
    image, built = build(tmp_path, files_tar({"a": big, "b": b"small", "c": big, "d": b"small", "z": bytes(5_000_000)}))
    assert built.sum.size_bytes < len(big) + 5_000_000 + 5 * BLOCK
    for path in ("/a", "/b", "/z"):
        said = subprocess.run(["dump.erofs", f"--path={path}", str(image)], check=True, capture_output=True, text=True)
        assert re.search(r"Layout: 0\b", said.stdout), said.stdout
    # What is zero takes no room on the disk.
    assert image.stat().st_blocks * 512 < len(big) + 100_000
    with mounted(image, tmp_path / "mount") as root:
        assert (root / "c").read_bytes() == big
        assert (root / "z").read_bytes() == bytes(5_000_000)
        assert (root / "a").stat().st_ino != (root / "c").stat().st_ino


@settings(deadline=None, max_examples=20, suppress_health_check=SLOW)
@given(tree=trees(), order=st.randoms())
def test_extents_tell_where_everything_is_in_the_order_that_was_asked(tree: Tree, order: Random) -> None:
    with tempfile.TemporaryDirectory() as scratch, Spool(Path(scratch) / "spool") as spool:
        model, contents = FileTree(LIMITS), Contents(spool)
        files = [made.content for made in tree.values() if made.kind == "file"]
        nodes = [model.file(0, b"%d" % number, contents.add([data])) for number, data in enumerate(files)]
        first = order.sample(nodes, len(nodes) // 2)
        _, extents = write_image(model, contents, Path(scratch) / "image", first=first)
        data = (Path(scratch) / "image").read_bytes()
        at = extents.meta_bytes
        for offset, unit in extents:
            assert offset == at
            length = spool.units.lengths[unit]
            assert hashlib.sha256(data[offset : offset + length]).digest() == spool.units.digest(unit)
            at += -(-length // BLOCK) * BLOCK
        assert at == len(data)
        wanted = [unit for node in first for unit in contents.units(model.content(node)) if spool.units.lengths[unit]]
        assert list(extents.units)[: len(dict.fromkeys(wanted))] == list(dict.fromkeys(wanted))


def test_a_directory_of_this_machine_is_read_as_it_is(tmp_path: Path) -> None:
    tree = SPECIAL["owners"]() | {b"l": Made("link", content=b"f1"), b"s": Made("symlink", 0o777, content=b"\xff/x")}
    source, _ = build(
        tmp_path / "a", to_tar(tree | {b"h": Made("file", 0o600, content=b"x" + bytes(9_000_000) + b"y")})
    )
    with mounted(source, tmp_path / "mount") as root:
        built = build_from_directory(root, tmp_path / "again", spool=tmp_path, limits=LIMITS)
    assert (tmp_path / "again").read_bytes() == source.read_bytes()
    assert built.dropped == {}
    holes = tmp_path / "holes"
    holes.mkdir()
    with (holes / "h").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"x")
        file.truncate(20_000_001)
    os.setxattr(holes / "h", "user.colour", b"blue")
    built = build_from_directory(holes, tmp_path / "third", spool=tmp_path, limits=LIMITS)
    assert (dict(built.dropped), built.dropped.names("extended attributes")) == ({"extended attributes": 1}, ["h"])
    with mounted(tmp_path / "third", tmp_path / "mount") as root:
        assert (root / "h").read_bytes() == (holes / "h").read_bytes()
    assert (tmp_path / "third").stat().st_blocks * 512 < 2_000_000


def test_memory_is_bounded_by_columns(tmp_path: Path) -> None:
    """Nodes that are replaced again and again count: they stay in the columns."""
    rows = [("f", b"")] * 600
    with pytest.raises(erofs.SourceTooLargeError, match="more than 500 files"):
        build(tmp_path, files_tar(rows), limits=type(LIMITS)(entries=500))
    deep = plain_tar(*(info_of(b"%d/" % number + b"/".join([b"x"] * 50), Made("file")) for number in range(20)))
    with pytest.raises(erofs.SourceTooLargeError, match="more than 500 files"):
        build(tmp_path, deep, limits=type(LIMITS)(entries=500))
    with pytest.raises(erofs.SourceTooLargeError, match="names and links"):
        build(
            tmp_path,
            files_tar({str(n): b"-> " + b"t" * 4000 for n in range(9)}),
            limits=type(LIMITS)(text_bytes=30_000),
        )


def test_directories_are_measured_as_they_are_written() -> None:
    for count in (0, 1, 200, 333):
        blocks = list(dirent_blocks(listed(b"%d" % number for number in range(count))))
        used = sum(12 + len(name) for name in blocks[-1])
        size = (len(blocks) - 1) * BLOCK + used
        assert full_blocks(size) + is_inline(size) == len(blocks)
