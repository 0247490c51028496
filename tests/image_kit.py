"""Trees and archives for tests of images: made by Hypothesis, written by the library, compared with what became."""

import gzip
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zstandard
from hypothesis import strategies as st

from sandboxd.images.layers import Built, LayerFile, build_from_layers
from sandboxd.images.tree import ImportLimits

LIMITS = ImportLimits(size_bytes=1 << 28, entries=50_000)


@dataclass(frozen=True, slots=True)
class Made:
    """One thing of a tree; links name another."""

    kind: str
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    content: bytes = b""


Tree = dict[bytes, Made]
"""By path; the root is the empty one."""

_bytes = st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"0"))
names = st.one_of(
    _bytes,
    st.sampled_from([b"a", b"b", b"!", b"-", b"...", b"..a", b"\xff\xfe", b"n" * 255, "ünï".encode(), b"a\nb", b" "]),
).filter(lambda name: name not in {b".", b".."} and not name.startswith(b".wh."))
contents = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"", b"x" * 4095, b"x" * 4096, b"x" * 4097, bytes(9000), b"y" * 20_000, b"a" + bytes(70_000) + b"b"]
    ),
)
times = st.one_of(st.just(0), st.integers(0, 2**33 * 10**9), st.integers(0, 10**6).map(lambda number: number * 10**9))
ids = st.one_of(st.just(0), st.integers(0, 2**32 - 2))
modes = st.integers(0, 0o7777)


@st.composite
def trees(draw: st.DrawFn, most: int = 25) -> Tree:
    """A tree with parents before children, and links to what is there."""
    tree: Tree = {b"": Made("directory", draw(modes), draw(ids), draw(ids), draw(times))}
    directories, files = [b""], list[bytes]()
    for _ in range(draw(st.integers(0, most))):
        parent = draw(st.sampled_from(directories))
        path = (parent + b"/" if parent else b"") + draw(names)
        if path in tree or len(path) > 3000:
            continue
        kind = draw(st.sampled_from(["file", "file", "directory", "symlink", "link"]))
        owners = draw(modes), draw(ids), draw(ids), draw(times)
        if kind == "link" and files:
            tree[path] = Made("link", content=draw(st.sampled_from(files)))
        elif kind == "directory":
            tree[path] = Made("directory", *owners)
            directories.append(path)
        elif kind == "symlink":
            target = draw(st.one_of(_bytes, st.sampled_from([b"../" * 900 + b"x", b"/etc", b"t" * 4095])))
            tree[path] = Made("symlink", 0o777, *owners[1:], target)
        else:
            tree[path] = Made("file", *owners, draw(contents))
            files.append(path)
    return tree


def to_tar(tree: Tree, kind: int = tarfile.PAX_FORMAT) -> bytes:
    """Write a tree as an archive; times to the nanosecond, which the library itself would round."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=kind, encoding="utf-8", errors="surrogateescape") as archive:
        for path, made in tree.items():
            archive.addfile(info_of(path, made), io.BytesIO(made.content if made.kind == "file" else b""))
    return written.getvalue()


_TYPES = {
    "file": tarfile.REGTYPE,
    "directory": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "link": tarfile.LNKTYPE,
}


def info_of(path: bytes, made: Made) -> tarfile.TarInfo:
    info = tarfile.TarInfo(os.fsdecode(path) or ".")
    info.type = _TYPES[made.kind]
    info.mode, info.uid, info.gid = made.mode, made.uid, made.gid
    seconds, rest = divmod(made.mtime_ns, 10**9)
    info.mtime = seconds
    info.pax_headers = {"mtime": f"{seconds}.{rest:09}"}
    if made.kind == "file":
        info.size = len(made.content)
    elif made.kind != "directory":
        info.linkname = os.fsdecode(made.content)
    return info


def build(home: Path, *layers: bytes, compress: str = "", limits: ImportLimits = LIMITS) -> tuple[Path, Built]:
    """Make an image of these layers."""
    home.mkdir(parents=True, exist_ok=True)
    files: list[LayerFile] = []
    for number, layer in enumerate(layers):
        path = home / f"{number}.tar"
        path.write_bytes({"": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}[compress](layer))
        files.append(LayerFile(path, "application/vnd.oci.image.layer.v1.tar", None))
    target = home / "image.erofs"
    target.unlink(missing_ok=True)
    return target, build_from_layers(files, target, spool=home, limits=limits)


@contextmanager
def mounted(image: Path, at: Path) -> Generator[Path]:
    """Let the kernel read an image."""
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", str(image), str(at)], check=True, capture_output=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


def read_back(root: Path) -> tuple[Tree, set[frozenset[bytes]]]:
    """Read a directory as a tree, and which of its names are one file."""
    top = os.fsencode(root)
    tree: Tree = {}
    inodes: dict[int, set[bytes]] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        place = top + b"/" + path
        status = os.lstat(place)
        tree[path] = _made(place, status)
        if stat.S_ISDIR(status.st_mode):
            listed = os.listdir(place)  # noqa: PTH208 - bytes
            assert len(set(listed)) == len(listed)
            pending += [path + b"/" + name if path else name for name in listed]
            below = [os.lstat(place + b"/" + name).st_mode for name in listed]
            assert status.st_nlink == 2 + sum(map(stat.S_ISDIR, below))
        else:
            inodes.setdefault(status.st_ino, set()).add(path)
            assert status.st_nlink >= len(inodes[status.st_ino])
    return tree, {frozenset(paths) for paths in inodes.values() if len(paths) > 1}


def _made(place: bytes, status: os.stat_result) -> Made:
    kind, content = "directory", b""
    if stat.S_ISREG(status.st_mode):
        kind = "file"
        with open(place, "rb") as file:  # noqa: PTH123 - its name is bytes
            content = file.read()
        assert len(content) == status.st_size
    elif stat.S_ISLNK(status.st_mode):
        kind, content = "symlink", os.readlink(place)  # noqa: PTH115 - bytes
    return Made(kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, content)


def resolved(tree: Tree) -> tuple[Tree, set[frozenset[bytes]]]:
    """What a tree looks like on a disk: links are the files they name, and those names are one file."""
    flat: Tree = {}
    groups: dict[bytes, set[bytes]] = {}
    for path in tree:
        first = path
        while tree[first].kind == "link":
            first = tree[first].content
        flat[path] = tree[first]
        if tree[first].kind != "directory":
            groups.setdefault(first, set()).add(path)
    return flat, {frozenset(paths) for paths in groups.values() if len(paths) > 1}


def check(image: Path) -> None:
    """Let fsck.erofs look at everything."""
    ended = subprocess.run(["fsck.erofs", str(image)], check=False, capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()


def plain_tar(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return written.getvalue()


def files_tar(files: dict[str, bytes] | Sequence[tuple[str, bytes]]) -> bytes:
    """Names that end with a slash are directories; `-> x` and `=> x` make symbolic and hard links."""
    rows: Sequence[tuple[str, bytes]] = list(files.items()) if isinstance(files, dict) else files
    members: list[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]] = []
    for name, data in rows:
        info = tarfile.TarInfo(name)
        if name.endswith("/"):
            info.type = tarfile.DIRTYPE
            members.append(info)
        elif data[:3] in {b"-> ", b"=> "}:
            info.type = tarfile.SYMTYPE if data.startswith(b"-") else tarfile.LNKTYPE
            info.linkname = data[3:].decode()
            members.append(info)
        else:
            members.append((info, data))
    return plain_tar(*members)


def listing(image: Path, at: Path) -> dict[str, bytes | str]:
    """Files with their bytes, links with `-> target`, empty directories with a slash."""
    with mounted(image, at) as root:
        tree, _ = read_back(root)
    found: dict[str, bytes | str] = {}
    full = {path.rpartition(b"/")[0] for path in tree if path}
    for path, made in tree.items():
        name = os.fsdecode(path)
        if made.kind == "file":
            found[name] = made.content
        elif made.kind == "symlink":
            found[name] = f"-> {os.fsdecode(made.content)}"
        elif path not in full:
            found[name + "/"] = b""
    return found


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Cut bytes into chunks of these sizes, again and again."""
    chunks: list[bytes] = []
    at = number = 0
    while at < len(data):
        size = max(1, sizes[number % len(sizes)]) if sizes else len(data)
        chunks.append(data[at : at + size])
        at += size
        number += 1
    return chunks
