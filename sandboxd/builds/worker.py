"""The program that reads what strangers made: without rights, bounded in everything.

It is started with one directory as its own and with descriptors of what it reads; a request comes in one of them, as
JSON, and an answer goes out as JSON. It is gone after one request.
"""

import gc
import json
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from programs.libc import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, check, libc, prctl
from sandboxd.builds.copying import Copy, Copying, Destination, NothingToCopyError, leave_out
from sandboxd.builds.globs import Ignore, PatternError
from sandboxd.builds.table import render
from sandboxd.builds.upper import Upper
from sandboxd.images.content import Contents, Spool
from sandboxd.images.erofs import ImageBuildError, SourceDamagedError, SourceTooLargeError
from sandboxd.images.erofs_layout import BLOCK
from sandboxd.images.erofs_reader import ErofsImage, ImageContents
from sandboxd.images.erofs_writer import write_without
from sandboxd.images.filetree import ROOT, FileTree
from sandboxd.images.inflate import Inflated
from sandboxd.images.stack import Dropped, Stack
from sandboxd.images.tar_stream import ByteStream, TarStream
from sandboxd.images.tree import ImportLimits, Tally
from sandboxd.images.unit_sums import KnownUnits, parse

_PIECE: Final = 1024 * 1024
_CLONE_NEWNET: Final = 0x40000000
_CLONE_NEWIPC: Final = 0x08000000
_IGNORE_BYTES: Final = 1024 * 1024
_MEMORY_BYTES: Final = 4 * 1024**3
_CPU_SECONDS: Final = 3600


def main() -> None:
    """Do what the request on descriptor 3 says, and answer on descriptor 4."""
    gc.disable()  # there is one request, and its memory is bounded: looking for circles is a fifth of its time
    with os.fdopen(3, "rb") as asking:
        request: dict[str, Any] = json.load(asking)
    _confine(int(request["size_bytes"]), int(request["uid"]))
    try:
        answer = Work(request).run()
    except NothingToCopyError as error:
        answer = _failed("missing", error)
    except SourceTooLargeError as error:
        answer = _failed("too_large", error)
    except SourceDamagedError as error:
        answer = _failed("damaged", error)
    except (ImageBuildError, PatternError) as error:
        answer = _failed("unsafe", error)
    except (MemoryError, RecursionError) as error:
        answer = _failed("too_large", error)
    except OSError as error:
        answer = _failed("disk", error)
    with os.fdopen(4, "wb") as answering:
        answering.write(json.dumps(answer).encode())


def _failed(kind: str, error: BaseException) -> dict[str, Any]:
    return {"error": kind, "message": str(error)[:1000] or type(error).__name__}


def _confine(size_bytes: int, uid: int) -> None:
    """Give up everything that is not needed, for good."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES + 2 * size_bytes, _MEMORY_BYTES + 2 * size_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size_bytes, 2 * size_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parent = os.getppid()
    if os.geteuid() == 0:
        # What it needs is loaded or open: it sees its own directory, no network, and nobody's shared memory.
        check(libc.unshare(_CLONE_NEWNET | _CLONE_NEWIPC), "unshare")
        os.chroot(".")
        os.chdir("/")
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    prctl(PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")
    prctl(PR_SET_DUMPABLE, 0, "dumpable")
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, "pdeathsig")
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if os.getppid() != parent:
        sys.exit(1)  # the node agent ended before it could be seen to


class Work:
    """One request: a tree, what is laid over it, and an image of it; or digests of what copies would take."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request
        self._limits = ImportLimits(size_bytes=int(request["size_bytes"]), entries=int(request["entries"]))
        self._dropped = Dropped()
        self._left_out: Counter[str] = Counter()
        """Of the context."""
        self._images: dict[int, FileTree] = {}
        self._context: FileTree | None = None

    def run(self) -> dict[str, Any]:
        with Spool(Path("content")) as spool:
            self._sink = ImageContents(spool)
            self._contents = Contents(self._sink)
            if self._request["do"] == "digest":
                return {"digests": [self._digest(row) for row in self._request["copies"]]}
            return self._apply()

    def _digest(self, row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {"digest": self._copying(row).digest(_copy(row))}
        except NothingToCopyError as error:
            return {"missing": str(error)[:1000]}

    def _apply(self) -> dict[str, Any]:
        request = self._request
        tree = FileTree(self._limits)
        parent: ErofsImage | None = None
        if request["parent"] is not None:
            parent = self._read(int(request["parent"]), tree)
        for row in request["changes"]:
            self._change(tree, row)
        tally = Tally(self._limits)
        apart = str(request["apart"]).encode()

        def lies(unit: int) -> int | None:
            """Say where the parent, which was read first, has a unit as the image is to have it."""
            place = None if parent is None else self._sink.place(unit)
            if parent is None or place is None:
                return None
            end = place + self._sink.units.lengths[unit]
            filled = place % BLOCK == 0 and not parent.data[end : end + -end % BLOCK].strip(b"\0")
            return place if filled and end + -end % BLOCK <= len(parent.data) else None

        moves = write_without(tree, self._contents, Path("image.erofs"), lies, apart=apart, tick=tally.go_on)
        Path("table").write_bytes(render(moves))
        return {"dropped": dict(self._left_out + Counter(self._dropped))}

    def _change(self, tree: FileTree, row: Mapping[str, Any]) -> None:
        kind = row["kind"]
        if kind == "upper":
            tally = Tally(replace(self._limits, size_bytes=int(self._request["upper_bytes"])))
            upper = Upper(tree, self._contents, tally, self._dropped)
            archive = TarStream(ByteStream(_pieces(int(row["descriptor"]))))
            upper.apply(archive, row["exclude"])
            if not archive.ended:
                raise SourceDamagedError("the difference is cut off")
        elif kind == "copy":
            self._copying(row).run(_copy(row), tree)
        else:
            Destination(tree).directory(str(row["path"]).encode())

    def _copying(self, row: Mapping[str, Any]) -> Copying:
        source = self._read_context() if row["image"] is None else self._image(int(row["image"]))
        return Copying(source, self._contents, Tally(self._limits))

    def _image(self, descriptor: int) -> FileTree:
        if descriptor not in self._images:
            tree = FileTree(self._limits)
            self._read(descriptor, tree)
            self._images[descriptor] = tree
        return self._images[descriptor]

    def _read(self, descriptor: int, tree: FileTree) -> ErofsImage:
        image = ErofsImage(descriptor)
        image.read(tree, self._contents, self._sink, Tally(self._limits), self._known(descriptor))
        return image

    def _known(self, descriptor: int) -> KnownUnits | None:
        """Return what the node knows of an image's units."""
        number = self._request["units"].get(str(descriptor))
        if number is None:
            return None
        with os.fdopen(int(number), "rb", closefd=False) as file:
            return parse(file.read())

    def _read_context(self) -> FileTree:
        if self._context is None:
            tree = FileTree(self._limits)
            descriptor = self._request["context"]
            if descriptor is None:
                raise NothingToCopyError("the build has no context to copy from")
            stack = Stack(tree, self._contents, Tally(self._limits))
            plain = Inflated(Path("the context"), self._limits, int(descriptor))
            pieces = iter(plain)
            archive = TarStream(ByteStream(pieces))
            stack.add(archive, strict=True)
            for _ in pieces:
                pass  # what is compressed is whole only if its end is
            if not (archive.ended or plain.whole_is_known):
                raise SourceDamagedError("the context is cut off")
            self._left_out.update(stack.dropped)
            self._leave_out(tree)
            self._context = tree
        return self._context

    def _leave_out(self, tree: FileTree) -> None:
        node = tree.child(ROOT, b".dockerignore")
        if node is None or tree.is_directory(node) or tree.is_symlink(node):
            return
        content = tree.content(node)
        if self._contents.size(content) > _IGNORE_BYTES:
            raise SourceTooLargeError("the .dockerignore has more than 1 MiB")
        data = b"".join(self._sink.get(unit) or b"" for unit in self._contents.units(content))
        leave_out(tree, Ignore(data.decode("utf-8", "surrogateescape")))


def _copy(row: Mapping[str, Any]) -> Copy:
    return Copy(sources=tuple(row["sources"]), to=row["to"], mode=row["mode"], owner=row["owner"])


def _pieces(descriptor: int) -> Iterator[bytes]:
    return iter(lambda: os.read(descriptor, _PIECE), b"")


if __name__ == "__main__":
    main()
    sys.exit(0)
