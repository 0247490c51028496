"""Images put together by the program without rights: what is copied, what differs, what strangers send."""

import asyncio
import bz2
import gzip
import lzma
import os
import tarfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard

from build_kit import GONE, OPAQUE, link, owners, read_image, symlink, tar
from sandboxd.builds.making import Change, Maker, Product
from sandboxd.contract.images import ImageReason
from sandboxd.hooks.base import NoFailPoints
from sandboxd.images.base import ImageConfig, Origin
from sandboxd.images.runners import JobError
from sandboxd.images.store import ImageStore
from sandboxd.images.tree import ImportLimits

ORIGIN = Origin(
    kind="build", reference="step", digest="sha256:" + "0" * 64, platform="linux/amd64", at="2026-11-24T00:00:00Z"
)
UID = 65_262
LIMITS = ImportLimits(size_bytes=1 << 26, entries=2000)
BASE = {
    "etc": None,
    "etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:50:60::/:/bin/sh\n",
    "etc/group": "staff:x:70:\n",
    "usr": None,
    "usr/bin": None,
    "bin": symlink("usr/bin"),
    "big": "x" * 3_000_000,
}


class Bench:
    """A store with one image, and a maker."""

    def __init__(self, home: Path, store: ImageStore, maker: Maker, base: Path) -> None:
        self.home = home
        self.store = store
        self.maker = maker
        self.base = base

    async def make(
        self, *changes: Change, context: dict[str, Any] | bytes | None = None, upper: bytes | None = None
    ) -> tuple[dict[str, Any], dict[str, tuple[int, int, int]], Product]:
        place = None
        if context is not None:
            place = self.home / "context.tar"
            place.write_bytes(context if isinstance(context, bytes) else tar(context))
            place.chmod(0o600)

        async def difference(into: int) -> None:
            def write() -> None:
                view = memoryview(upper or b"")
                while view:
                    view = view[os.write(into, view) :]

            await asyncio.to_thread(write)

        wanted = difference if upper is not None else None
        product = await self.maker.make(
            self.base, list(changes), ImageConfig(), ORIGIN, context=place, difference=wanted, upper_bytes=1 << 24
        )
        async with self.store.lease(product.image.id) as local:
            await self.store.verify(product.image.id)
            return read_image(local.path, self.home / "spool"), owners(local.path, self.home / "spool"), product

    def leftovers(self) -> list[Path]:
        return list((self.store.directory / ".work").iterdir())


@asynccontextmanager
async def bench(home: Path) -> AsyncGenerator[Bench]:
    store = ImageStore(home / "images")
    await store.open()
    source = home / "base.tar"
    source.write_bytes(tar(BASE))
    image = await store.import_path(source, ["base"], ImageConfig())
    async with store.lease(image.id) as local:
        made = Bench(home, store, Maker(store, NoFailPoints(), LIMITS, uid=UID), local.path)
        yield made
    assert made.leftovers() == []


def copy(*sources: str, to: str, **more: Any) -> Change:
    return Change(kind="copy", sources=sources, to=to, **more)


CONTEXT = {
    "app": None,
    "app/main.py": "print()",
    "app/lib": None,
    "app/lib/a": "1",
    "app/ln": symlink("main.py"),
    "x.txt": "x",
}


async def test_files_and_directories_are_copied(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        found, rights, _ = await made.make(
            copy("app", to="/srv/", owner="app:staff", mode=0o700),
            copy("x.txt", to="/bin/tool"),
            copy("x.txt", to="/etc"),
            copy("app/*.py", to="/new/dir/"),
            Change(kind="directory", path="/desk/here"),
            context=CONTEXT,
        )
        assert found["srv/main.py"] == "print()"
        assert found["srv/ln"] == "→ main.py"
        assert rights["srv/lib/a"] == (0o700, 50, 70)
        assert found["usr/bin/tool"] == "x", "links of the image are followed in the image"
        assert rights["usr/bin/tool"] == (0o644, 0, 0)
        assert found["etc/x.txt"] == "x"
        assert found["new/dir/main.py"] == "print()"
        assert found["desk/here"] is None
        assert found["big"] == BASE["big"]


async def test_what_dockerignore_says_is_not_there(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        found, _, _ = await made.make(
            copy(".", to="/c/"), context={**CONTEXT, ".dockerignore": "app\n!app/lib\n.dockerignore\n"}
        )
        assert [path for path in found if path.startswith("c")] == ["c", "c/app", "c/app/lib", "c/app/lib/a", "c/x.txt"]


async def test_files_of_another_image_and_of_the_same(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        found, _, _ = await made.make(copy("/etc/passwd", "/usr", to="/from/", image=made.base))
        assert found["from/passwd"] == BASE["etc/passwd"]
        assert found["etc/passwd"] == BASE["etc/passwd"]


async def test_digests_follow_content_and_not_times(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:

        async def digest(context: dict[str, Any], source: str = "app") -> str | None:
            place = tmp_path / "digest.tar"
            place.write_bytes(tar(context))
            return (await made.maker.digests([copy(source, to="/")], place))[0]

        first = await digest(CONTEXT)
        assert first is not None
        assert first == await digest(
            {**CONTEXT, "other": "y", "app/main.py": {"data": b"print()", "mtime": 99, "mode": 0o644}}
        )
        assert first != await digest({**CONTEXT, "app/main.py": "print(1)"})
        assert first != await digest({**CONTEXT, "app/main.py": {"data": b"print()", "mode": 0o755}})
        assert await digest(CONTEXT, "nothing*") is None


async def test_a_difference_of_a_sandbox_is_laid_over(tmp_path: Path) -> None:
    upper = tar({"./": None, "./etc": OPAQUE, "./etc/new": "n", "./big": GONE, "./usr": link("./big"), "./hot": "h"})
    async with bench(tmp_path) as made:
        found, _, _ = await made.make(Change(kind="upper"), upper=upper)
        assert found == {"bin": "→ usr/bin", "etc": None, "etc/new": "n", "hot": "h"}


async def test_what_is_known_of_a_parent_changes_no_byte(tmp_path: Path) -> None:
    """The first image is made with nothing known, the second with all; and one on top of each other."""
    files = {"./new": "n" * 5000, "./zeros": {"data": bytes(1 << 20)}, "./same": BASE["big"]}
    async with bench(tmp_path) as made:
        known = made.store.directory / ".units" / made.base.stem
        assert not known.exists()
        _, _, first = await made.make(Change(kind="upper"), upper=tar(files))
        while True:
            if known.exists():
                break
            await asyncio.sleep(0.01)
        _, _, second = await made.make(Change(kind="upper"), upper=tar(files))
        assert first.image.digest == second.image.digest
        async with made.store.lease(first.image.id) as local:
            made.base = local.path
            found, _, _ = await made.make(Change(kind="upper"), upper=tar({"./more": "m"}))
        assert (found["new"], found["more"], found["same"]) == ("n" * 5000, "m", BASE["big"])
        assert found["zeros"] == "\0" * (1 << 20)


async def test_an_image_is_made_although_what_is_known_is_damaged(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        (made.store.directory / ".units").mkdir()
        (made.store.directory / ".units" / made.base.stem).write_bytes(b"SLUNITS1" + bytes(100))
        found, _, _ = await made.make(Change(kind="upper"), upper=tar({"./more": "m"}))
        assert found["more"] == "m"
        assert found["big"] == BASE["big"]


HOSTILE: dict[str, tuple[dict[str, Any] | bytes, ImageReason]] = {
    "out": ({"../x": "x"}, ImageReason.UNSAFE_CONTENT),
    "through a link": ({"a": symlink("/etc"), "a/x": "x"}, ImageReason.UNSAFE_CONTENT),
    "a hard link out": ({"a": link("../../etc/shadow")}, ImageReason.UNSAFE_CONTENT),
    "a hard link to nothing": ({"a": link("etc/shadow")}, ImageReason.UNSAFE_CONTENT),
    "too many files": ({str(number): "" for number in range(2100)}, ImageReason.TOO_LARGE),
    "too deep": ({"/".join(["d"] * 200): "x"}, ImageReason.TOO_LARGE),
    "too long a name": ({"n" * 300: "x"}, ImageReason.UNSAFE_CONTENT),
    "no archive": (b"no tar at all" * 1000, ImageReason.CORRUPT),
    "cut off": (tar({"a": "x" * 5000})[:2000], ImageReason.CORRUPT),
    "no end of rules": ({".dockerignore": "[" * 5000}, ImageReason.UNSAFE_CONTENT),
    "too many rules": ({".dockerignore": "a\n" * 600_000}, ImageReason.TOO_LARGE),
}


async def test_devices_and_pipes_of_a_context_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = {"d": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "p": {"type": tarfile.FIFOTYPE}, "f": "x"}
    async with bench(tmp_path) as made:
        found, _, product = await made.make(copy(".", to="/c/"), context=rows)
        assert [path for path in found if path.startswith("c")] == ["c", "c/f"]
        assert product.dropped == {"devices": 1, "pipes": 1}


@pytest.mark.parametrize("which", HOSTILE)
async def test_hostile_contexts_are_refused(tmp_path: Path, which: str) -> None:
    context, reason = HOSTILE[which]
    async with bench(tmp_path) as made:
        with pytest.raises(JobError) as caught:
            await made.make(copy(".", to="/c/"), context=context)
        assert caught.value.reason is reason, caught.value


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "two members": lambda data: gzip.compress(data[:1500], 1) + gzip.compress(data[1500:], 1),
    "zstd": zstandard.ZstdCompressor(1).compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("how", COMPRESSED)
async def test_contexts_may_be_compressed(tmp_path: Path, how: str) -> None:
    compressed = COMPRESSED[how]
    async with bench(tmp_path) as made:
        plain, _, one = await made.make(copy("app", to="/srv/"), context=CONTEXT)
        found, _, other = await made.make(copy("app", to="/srv/"), context=compressed(tar(CONTEXT)))
        assert (found, other.image.digest) == (plain, one.image.digest)
        bomb = compressed(tar({"zeros": {"data": bytes(2 * LIMITS.size_bytes)}}))
        for context, reason in ((bomb, "too_large"), (compressed(tar(CONTEXT))[:-9], "corrupt")):
            with pytest.raises(JobError) as caught:
                await made.make(copy(".", to="/c/"), context=context)
            assert caught.value.reason == reason, caught.value


async def test_a_context_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("bomb")
    huge.size = 1 << 40
    async with bench(tmp_path) as made:
        with pytest.raises(JobError) as caught:
            await made.make(copy(".", to="/c/"), context=huge.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        assert caught.value.reason is ImageReason.TOO_LARGE


@pytest.mark.parametrize(
    ("upper", "reason"),
    [
        (tar({"./bin/x": "through a link"}), ImageReason.UNSAFE_CONTENT),
        (tar({"./" + "/".join(["d"] * 200): "x"}), ImageReason.TOO_LARGE),
        (tar({"./big": {"data": bytes(1 << 24) + b"x"}}), ImageReason.TOO_LARGE),
        (tar({"./a": "x"})[:700], ImageReason.CORRUPT),
        (b"", ImageReason.CORRUPT),
    ],
)
async def test_hostile_differences_are_refused(tmp_path: Path, upper: bytes, reason: ImageReason) -> None:
    async with bench(tmp_path) as made:
        with pytest.raises(JobError) as caught:
            await made.make(Change(kind="upper"), upper=upper)
        assert caught.value.reason is reason, caught.value


async def test_names_of_any_bytes_and_sockets_pipes_devices(tmp_path: Path) -> None:
    rows = {"./\udcff\udcfe": "raw", "./p": {"type": tarfile.FIFOTYPE}, "./d": {"type": tarfile.BLKTYPE}}
    async with bench(tmp_path) as made:
        found, _, product = await made.make(Change(kind="upper"), upper=tar(rows))
        assert found["\udcff\udcfe"] == "raw"
        assert product.dropped == {"pipes": 1, "devices": 1}


async def test_the_program_that_reads_has_no_rights(tmp_path: Path) -> None:
    """What it reads hangs; meanwhile somebody looks at it. Cut off, it is gone with all it had."""
    async with bench(tmp_path) as made:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def difference(into: int) -> None:
            await asyncio.to_thread(os.write, into, tar({"./a": "x"})[:512])
            begun.set()
            await go_on.wait()

        work = asyncio.ensure_future(
            made.maker.make(made.base, [Change(kind="upper")], ImageConfig(), ORIGIN, difference=difference)
        )
        await begun.wait()
        (own,) = [path / "own" for path in made.leftovers()]
        pids = [pid for pid in _children() if Path(f"/proc/{pid}/cwd").resolve() == own]
        while not pids or "Uid:\t65262\t65262\t65262\t65262" not in (status := _status(pids[0])):
            await asyncio.sleep(0.01)
            pids = [pid for pid in _children() if Path(f"/proc/{pid}/cwd").resolve() == own]
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert Path(f"/proc/{pids[0]}/root").resolve() == own, "it sees nothing else"
        assert Path(f"/proc/{pids[0]}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert not Path(f"/proc/{pids[0]}").exists()


def _children() -> list[int]:
    own = os.getpid()
    return [int(pid) for task in Path(f"/proc/{own}/task").iterdir() for pid in (task / "children").read_text().split()]


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()
