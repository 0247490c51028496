"""What the image store promises: same tree, same image; nothing hostile comes in; nothing damaged goes out."""

import asyncio
import io
import json
import os
import re
import socket
import struct
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sandboxd.contract.ids import image_id_from_digest
from sandboxd.images.base import ImageConfig, ImageDamagedError, ImageMissingError
from sandboxd.images.erofs import ImageBuildError
from sandboxd.images.store import ImageInUseError, ImageStore, config_from_json
from sandboxd.images.tree import ImportLimits

CONFIG = ImageConfig(env={"A": "1"}, user="u", cwd="/w", entrypoint=("/e",), cmd=("c",))


@pytest.fixture
async def store(tmp_path: Path) -> ImageStore:
    made = ImageStore(tmp_path / "images")
    await made.open()
    return made


def make_tree(root: Path, order: Callable[[int], int] = lambda number: number) -> Path:
    root.mkdir()
    for number in sorted(range(40), key=order):
        directory = root / f"d{number % 5}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{number}").write_text("x" * number * 997)
        os.utime(directory / f"f{number}", (1000 + number, 1000 + number))
    (root / "d1/linked").hardlink_to(root / "d2/f2")
    (root / "link").symlink_to("d1/f1")
    os.utime(root / "link", (5, 5), follow_symlinks=False)
    (root / "setuid").write_text("x")
    os.chown(root / "setuid", 1234, 4321)
    (root / "setuid").chmod(0o4755)
    os.utime(root / "setuid", (1, 1))
    for directory in (*(entry for entry in root.iterdir() if entry.is_dir()), root):
        os.utime(directory, (7, 7))
    return root


def make_tar(path: Path, *members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def leftovers(store: ImageStore) -> list[str]:
    directory = store._directory
    names = [path.name for path in directory.iterdir() if path.name not in {".work", ".lent"}]
    return [name for name in names if name.startswith(".")] + [path.name for path in (directory / ".work").iterdir()]


def run(*command: str) -> str:
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def unpacked(store: ImageStore, image_id: str, target: Path) -> Path:
    path = next(store._directory.glob("*.erofs"))
    assert image_id
    run("fsck.erofs", f"--extract={target}", "--preserve", str(path))
    return target


def mode_in_image(image: Path, path: str) -> int:
    """Read the inode itself: fsck.erofs loses the setuid bit when it sets the owner."""
    found = re.search(r"NID: (\d+)", run("dump.erofs", f"--path={path}", str(image)))
    assert found is not None
    (mode,) = struct.unpack_from("<H", image.read_bytes(), int(found.group(1)) * 32 + 4)
    return mode


async def test_same_tree_same_image_however_it_comes(store: ImageStore, tmp_path: Path) -> None:
    one = await store.import_path(make_tree(tmp_path / "one"), ["a"], CONFIG)
    two = await store.import_path(make_tree(tmp_path / "two", lambda number: -number), ["b"], CONFIG)
    with tarfile.open(tmp_path / "tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "one", ".")
    three = await store.import_path(tmp_path / "tar.gz", ["c"], CONFIG)
    assert one.digest == two.digest == three.digest
    assert one.id == image_id_from_digest(one.digest)
    (held,) = store.held()
    assert held.names == ["a", "b", "c"]
    assert leftovers(store) == []


async def test_owners_modes_times_and_links_are_kept(store: ImageStore, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    with tarfile.open(tmp_path / "tar", "w") as archive:
        archive.add(tmp_path / "tree", "/")
    image = await store.import_path(tmp_path / "tar", [], CONFIG)
    root = unpacked(store, image.id, tmp_path / "out")
    status = (root / "setuid").stat()
    assert (status.st_uid, status.st_gid, int(status.st_mtime)) == (1234, 4321, 1)
    assert mode_in_image(next((tmp_path / "images").glob("*.erofs")), "/setuid") == 0o104755
    assert (root / "link").readlink() == Path("d1/f1")
    assert (root / "d1/linked").read_bytes() == (root / "d2/f2").read_bytes()
    assert int((root / "d3/f3").stat().st_mtime) == 1003


async def test_it_is_what_the_sentry_reads(store: ImageStore, tmp_path: Path) -> None:
    image = await store.import_path(make_tree(tmp_path / "tree"), [], CONFIG)
    async with store.lease(image.id) as local:
        data = local.path.read_bytes()
        run("fsck.erofs", str(local.path))
        assert local.path.stat().st_mode & 0o777 == 0o444
        assert local.config == CONFIG
    assert data[1024:1028] == bytes.fromhex("e2e1f5e0")
    assert data[1024 + 80 : 1024 + 84] == b"\0\0\0\0"
    assert data[1024 + 48 : 1024 + 64] != b"\0" * 16


async def test_a_tree_without_a_shell_and_an_empty_one(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    image = await store.import_path(tmp_path / "empty", ["empty"], ImageConfig())
    assert store.find("empty") == image
    assert store.find(image.id) == image
    assert store.find(image.digest) == image
    assert store.find("none") is None


@pytest.mark.parametrize(
    "members",
    [
        [member("../out")],
        [member("a/../../out")],
        [member("etc", tarfile.SYMTYPE, "/etc"), member("etc/passwd")],
        [member("up", tarfile.SYMTYPE, ".."), member("up/out")],
        [member("hard", tarfile.LNKTYPE, "../../etc/passwd")],
        [member("hard", tarfile.LNKTYPE, "missing")],
        [member("up", tarfile.SYMTYPE, "/etc"), member("hard", tarfile.LNKTYPE, "up/passwd")],
        [member("file"), member("file/below")],
        [member("d/file"), member("d")],
        [member("strange", b"Q")],
        [member("/".join(["deep"] * 200))],
    ],
    ids=lambda members: "+".join(f"{entry.name[:20]}" for entry in members),
)
async def test_hostile_tars_are_refused(store: ImageStore, tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    with pytest.raises(ImageBuildError):
        await store.import_path(make_tar(tmp_path / "tar", *members), ["bad"], CONFIG)
    assert store.held() == []
    assert leftovers(store) == []
    assert not (tmp_path / "out").exists()


async def test_absolute_names_are_taken_from_the_root(store: ImageStore, tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "tar", (member("/etc/passwd"), b"inside"), (member("etc/passwd"), b"again"))
    image = await store.import_path(tar, [], CONFIG)
    assert (unpacked(store, image.id, tmp_path / "out") / "etc/passwd").read_bytes() == b"again"


async def test_a_symbolic_link_out_of_the_root_is_only_text(store: ImageStore, tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "tar", member("shadow", tarfile.SYMTYPE, "/etc/shadow"))
    image = await store.import_path(tar, [], CONFIG)
    assert (unpacked(store, image.id, tmp_path / "out") / "shadow").is_symlink()


@pytest.mark.parametrize("content", [b"", b"no tar", b"\x1f\x8b\x08" + b"\0" * 100, b"\0" * 10240 + b"x" * 100])
async def test_what_is_no_tar_is_refused(store: ImageStore, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tar").write_bytes(content)
    if content.startswith(b"\0"):
        await store.import_path(tmp_path / "tar", [], CONFIG)  # two empty blocks are the end of an empty archive
        return
    with pytest.raises(ImageBuildError):
        await store.import_path(tmp_path / "tar", [], CONFIG)


async def test_a_tar_that_is_cut_off_is_refused(store: ImageStore, tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "tar", (member("file"), b"x" * 100_000)).read_bytes()
    (tmp_path / "tar").write_bytes(whole[:50_000])
    with pytest.raises(ImageBuildError):
        await store.import_path(tmp_path / "tar", [], CONFIG)


async def test_bombs_are_refused(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images", ImportLimits(size_bytes=1_000_000, entries=50, depth=8))
    await store.open()
    with tarfile.open(tmp_path / "big.gz", "w:gz") as archive:
        info = member("zeros")
        info.size = 5_000_000
        archive.addfile(info, io.BytesIO(b"\0" * info.size))
    many = make_tar(tmp_path / "many", *(member(f"f{number}") for number in range(60)))
    header = member("x" * 2_000_000)
    with tarfile.open(tmp_path / "header", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(header)
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree/hole").open("wb") as hole:
        hole.truncate(10**12)
    for source, words in (
        (tmp_path / "big.gz", "more than 1000000 bytes"),
        (many, "more than 50 files"),
        (tmp_path / "header", "header of"),
        (tmp_path / "tree", "more than 1000000 bytes"),
    ):
        with pytest.raises(ImageBuildError, match=words):
            await store.import_path(source, [], CONFIG)
    assert leftovers(store) == []


async def test_devices_pipes_and_sockets_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "tree/dev").mkdir(parents=True)
    (tmp_path / "tree/file").write_bytes(b"kept")
    os.mknod(tmp_path / "tree/dev/null", 0o020666, os.makedev(1, 3))
    os.mkfifo(tmp_path / "tree/dev/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "tree/dev/s"))
    whole = tmp_path / "whole.tar"
    run("tar", "-C", str(tmp_path / "tree"), "--warning=no-file-ignored", "-cf", str(whole), ".")
    for source, counted in (
        (tmp_path / "tree", {"devices": 1, "pipes": 1, "sockets": 1}),
        (whole, {"devices": 1, "pipes": 1}),
    ):
        store = ImageStore(tmp_path / f"images of {source.name}")
        await store.open()
        reported: list[Mapping[str, int]] = []
        await store.import_path(source, [], CONFIG, report=reported.append)
        assert [dict(dropped) for dropped in reported] == [counted]


async def test_a_mount_inside_a_directory_is_refused(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "mount/dev").mkdir(parents=True)
    run("mount", "-t", "tmpfs", "none", str(tmp_path / "mount/dev"))
    try:
        with pytest.raises(ImageBuildError, match="mounted"):
            await store.import_path(tmp_path / "mount", [], CONFIG)
    finally:
        run("umount", str(tmp_path / "mount/dev"))


async def test_missing_source(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageBuildError, match="no directory and no file"):
        await store.import_path(tmp_path / "none", [], CONFIG)
    with pytest.raises(ImageMissingError):
        await store.register_file(tmp_path / "none", [], CONFIG)
    with pytest.raises(ImageMissingError):
        async with store.lease("img" + "a" * 20):
            pass


async def test_one_import_for_all_who_ask(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(tmp_path / "tree")
    work, count = store._import, 0

    async def counted(source: Path) -> object:
        nonlocal count
        count += 1
        return await work(source)

    monkeypatch.setattr(store, "_import", counted)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(store.import_path(tree, [f"n{number}"], CONFIG)) for number in range(5)]
    assert len({task.result().digest for task in tasks}) == 1
    assert count == 1
    (held,) = store.held()
    assert sorted(held.names) == [f"n{number}" for number in range(5)]


async def test_an_import_that_is_cut_off_leaves_nothing_and_the_next_does_it(store: ImageStore, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    first = asyncio.ensure_future(store.import_path(tree, ["x"], CONFIG))
    second = asyncio.ensure_future(store.import_path(tree, ["y"], CONFIG))
    for _ in range(3):
        await asyncio.sleep(0)
    first.cancel()
    image = await second
    assert first.cancelled()
    assert image.names == ["y"]
    assert leftovers(store) == []


async def test_a_name_moves_to_the_newer_image(store: ImageStore, tmp_path: Path) -> None:
    old = await store.import_path(make_tree(tmp_path / "old"), ["n", "kept"], CONFIG)
    (tmp_path / "new").mkdir()
    new = await store.import_path(tmp_path / "new", ["n"], CONFIG)
    names = {image.id: image.names for image in store.held()}
    assert names == {old.id: ["kept"], new.id: ["n"]}


async def test_another_process_may_import(store: ImageStore, tmp_path: Path) -> None:
    assert store.held() == []
    other = ImageStore(tmp_path / "images")
    await other.open()
    image = await other.import_path(make_tree(tmp_path / "tree"), ["n"], CONFIG)
    assert [held.id for held in store.held()] == [image.id]
    async with store.lease(image.id) as local:
        assert local.config == CONFIG
    await other.remove(image.id)
    assert store.held() == []


async def test_registering_links_a_file_and_checks_it(store: ImageStore, tmp_path: Path) -> None:
    elsewhere = ImageStore(tmp_path / "elsewhere")
    await elsewhere.open()
    made = await elsewhere.import_path(make_tree(tmp_path / "tree"), ["n"], CONFIG)
    source = tmp_path / "link"
    source.symlink_to(next((tmp_path / "elsewhere").glob("*.erofs")))
    with pytest.raises(ImageDamagedError, match="not sha256:00"):
        await store.register_file(source, ["n"], CONFIG, "sha256:" + "00" * 32)
    assert store.held() == []
    for _ in range(2):
        assert await store.register_file(source, ["n"], CONFIG, made.digest) == made
    async with store.lease(made.id) as local:
        assert local.path.stat().st_ino == source.stat().st_ino
    (tmp_path / "text").write_text("no image" * 1000)
    with pytest.raises(ImageDamagedError, match="no EROFS"):
        await store.register_file(tmp_path / "text", ["n"], CONFIG)
    assert leftovers(store) == []


@pytest.mark.parametrize("harm", ["truncate", "superblock", "vanish"])
async def test_a_damaged_image_is_not_lent(store: ImageStore, tmp_path: Path, harm: str) -> None:
    image = await store.import_path(make_tree(tmp_path / "tree"), ["n"], CONFIG)
    path = next((tmp_path / "images").glob("*.erofs"))
    if harm == "vanish":
        path.unlink()
    else:
        path.chmod(0o644)
        with path.open("r+b") as file:
            if harm == "truncate":
                file.truncate(4096)
            else:
                file.seek(1024 + 50)
                file.write(b"xxxx")
    with pytest.raises(ImageMissingError if harm == "vanish" else ImageDamagedError):
        async with store.lease(image.id):
            pass
    assert store.held() == []
    again = await store.import_path(tmp_path / "tree", ["n"], CONFIG)
    assert again == image
    async with store.lease(image.id):
        pass


async def test_a_full_check_sees_one_changed_byte(store: ImageStore, tmp_path: Path) -> None:
    image = await store.import_path(make_tree(tmp_path / "tree"), ["n"], CONFIG)
    await store.verify(image.id)
    path = next((tmp_path / "images").glob("*.erofs"))
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(ImageDamagedError):
        await store.verify(image.id)


async def test_a_leased_image_is_not_removed(store: ImageStore, tmp_path: Path) -> None:
    image = await store.import_path(make_tree(tmp_path / "tree"), ["n"], CONFIG)
    async with store.lease(image.id):
        with pytest.raises(ImageInUseError):
            await store.remove(image.id)
    await store.remove(image.id)
    await store.remove(image.id)
    assert list((tmp_path / "images").glob("*.*s*")) == []


async def test_unreadable_records_are_no_images(store: ImageStore, tmp_path: Path) -> None:
    image = await store.import_path(make_tree(tmp_path / "tree"), ["n"], CONFIG)
    for name, content in (("bad", "{"), ("odd", json.dumps({"digest": image.digest})), ("none", "[]")):
        (tmp_path / "images" / f"{name}.json").write_text(content)
    assert [held.id for held in store.held()] == [image.id]


async def test_start_clears_what_was_cut_off_and_spares_what_is_at_work(store: ImageStore, tmp_path: Path) -> None:
    dead = tmp_path / "images/.work/dead"
    dead.mkdir()
    with store.workplace() as live:
        await ImageStore(tmp_path / "images").open()
        assert live.exists()
        assert not dead.exists()


def test_config_from_json() -> None:
    assert config_from_json({}) == ImageConfig()
    assert config_from_json({"env": None, "user": "", "cmd": ["a"], "cwd": "/x"}) == ImageConfig(cwd="/x", cmd=("a",))
