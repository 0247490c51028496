"""Trees, upper layers and contexts for tests of builds."""

import io
import stat
import tarfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sandboxd.images.content import Contents, Spool
from sandboxd.images.erofs_reader import ErofsImage, ImageContents
from sandboxd.images.filetree import ROOT, FileTree
from sandboxd.images.tree import ImportLimits, Tally

LIMITS = ImportLimits(size_bytes=1 << 28, entries=50_000)
Rows = Mapping[str, Any]
"""By path: text of a file, None for a directory, or a TarInfo's fields."""


def tar(rows: Rows) -> bytes:
    """An archive as it comes; `{"type": …}` for what is neither a file nor a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        for name, row in rows.items():
            info, data = tarfile.TarInfo(name), b""
            info.mode = 0o644
            if row is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(row, (str, bytes)):
                data = row.encode() if isinstance(row, str) else row
            else:
                for key, value in row.items():
                    if key == "data":
                        data = value
                    else:
                        setattr(info, key, value)
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data) if data else None)
    return buffer.getvalue()


GONE = {"type": tarfile.CHRTYPE}
"""A name that is gone, as an overlay writes it."""
OPAQUE = {"type": tarfile.DIRTYPE, "mode": 0o755, "pax_headers": {"SCHILY.xattr.trusted.overlay.opaque": "y"}}


def link(to: str) -> dict[str, Any]:
    return {"type": tarfile.LNKTYPE, "linkname": to}


def symlink(to: str) -> dict[str, Any]:
    return {"type": tarfile.SYMTYPE, "linkname": to}


@contextmanager
def bench(place: Path) -> Generator[tuple[FileTree, Contents, ImageContents]]:
    place.unlink(missing_ok=True)
    with Spool(place) as spool:
        sink = ImageContents(spool)
        yield FileTree(LIMITS), Contents(sink), sink
    place.unlink(missing_ok=True)


def listed(tree: FileTree, contents: Contents) -> dict[str, Any]:
    """What a tree holds: text of files, None of directories, `→ target` of links."""
    found: dict[str, Any] = {}
    pending = [("", ROOT)]
    while pending:
        prefix, node = pending.pop()
        for raw, child in tree.children(node).items():
            path = prefix + raw.decode("utf-8", "surrogateescape")
            if tree.is_directory(child):
                found[path] = None
                pending.append((path + "/", child))
            elif tree.is_symlink(child):
                found[path] = f"→ {tree.target(child).decode()}"
            else:
                units = contents.units(tree.content(child))
                data = [contents.sink.get(unit) or bytes(contents.sink.units.lengths[unit]) for unit in units]
                found[path] = b"".join(data).decode("utf-8", "surrogateescape")
    return dict(sorted(found.items()))


def read_image(path: Path, place: Path) -> dict[str, Any]:
    with bench(place) as (tree, contents, sink), path.open("rb") as file, ErofsImage(file.fileno()) as image:
        image.read(tree, contents, sink, Tally(LIMITS))
        return listed(tree, contents)


def owners(path: Path, place: Path) -> dict[str, tuple[int, int, int]]:
    """Mode, owner and group of everything in an image."""
    found: dict[str, tuple[int, int, int]] = {}
    with bench(place) as (tree, contents, sink), path.open("rb") as file, ErofsImage(file.fileno()) as image:
        image.read(tree, contents, sink, Tally(LIMITS))
        pending = [("", ROOT)]
        while pending:
            prefix, node = pending.pop()
            for raw, child in tree.children(node).items():
                name = prefix + raw.decode("utf-8", "surrogateescape")
                found[name] = (stat.S_IMODE(tree.modes[child]), tree.uids[child], tree.gids[child])
                if tree.is_directory(child):
                    pending.append((name + "/", child))
    return found
