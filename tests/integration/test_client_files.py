"""Files through the client: whole, resumed, as trees, and never outside where they belong."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandlot import (
    AsyncClient,
    AsyncSandbox,
    Client,
    FileChangedError,
    FileConflictError,
    FileMissingError,
    Files,
    InvalidRequestError,
    RetryPolicy,
    Sandbox,
    UnreachableError,
    UnsafeArchiveError,
)
from sandlot._trees import Unpacker, pack, packed_bytes
from sandlot.descriptions import ArchiveSummary
from stub_api import Fault, StubApi, StubFiles, running

_FAST = RetryPolicy(attempts=6, first_seconds=0, longest_seconds=0)


@pytest.fixture
def api() -> Iterator[StubApi]:
    with running() as api:
        yield api


@pytest.fixture
def files(api: StubApi) -> Iterator[Files]:
    with Client(api.url, api.key, retries=_FAST) as client, Sandbox.create(client=client) as sandbox:
        yield sandbox.files


@pytest.fixture
def inside(api: StubApi, files: Files) -> StubFiles:
    return api.only_files()


def test_text_bytes_and_modes(files: Files, inside: StubFiles) -> None:
    assert files.write("notes/a.txt", "grüße\n", mode=0o600).mode == "0600"
    assert files.read_text("notes/a.txt") == "grüße\n"
    assert files.write("/data", b"\x00\xff").size_bytes == 2
    assert files.write("/data", b"!", append=True).size_bytes == 3
    assert files.read("/data") == b"\x00\xff!"
    assert inside.entries["/home/user/notes/a.txt"].mode == "0600"


def test_conditions(files: Files) -> None:
    first = files.write("a", "1", only_new=True)
    with pytest.raises(FileConflictError):
        files.write("a", "2", only_new=True)
    assert files.write("a", "3", if_match=first.etag).etag != first.etag
    with pytest.raises(InvalidRequestError):
        files.write("a", "4", if_match=first.etag)


def test_the_whole_of_a_file_system(files: Files) -> None:
    files.make_directory("d/e")
    for name in ("d/1", "d/2", "d/e/3"):
        files.write(name, name)
    assert [one.path for one in files.list("d")] == [f"/home/user/d/{name}" for name in ("1", "2", "e")]
    assert [one.name for one in files.iterate("d", depth=2) if one.is_file] == ["1", "2", "3"]
    files.move("d/1", "d/4")
    with pytest.raises(FileConflictError):
        files.move("d/2", "d/4")
    files.move("d/2", "d/4", overwrite=True)
    assert files.set_permissions("d/4", mode=0o755, owner="root").mode == "0755"
    assert files.stat("d/4").owner == "root"
    with pytest.raises(FileConflictError):
        files.remove("d")
    files.remove("d", recursive=True)
    assert not files.exists("d")
    files.remove("d", missing_ok=True)
    with pytest.raises(FileMissingError):
        files.read("d")


def test_a_name_that_is_not_text(files: Files, inside: StubFiles) -> None:
    name = os.fsdecode(b"/tmp/\xff")
    files.write(name, "x")
    assert name in inside.entries
    assert files.stat(name).path == name
    assert files.list("/tmp")[0].name == os.fsdecode(b"\xff")


def test_another_user(api: StubApi, files: Files) -> None:
    files.as_user("root").write("/etc/motd", "hi")
    assert api.seen("PUT /v1/sandboxes/sbxaaaaaaaaaaaaaaaaaaa2/files")[0].value("user") == "root"


@given(data=st.binary(max_size=2000), cuts=st.lists(st.integers(0, 700), max_size=5))
@settings(max_examples=60, deadline=None)
def test_a_read_cut_anywhere_goes_on_there(data: bytes, cuts: list[int]) -> None:
    with running() as api, Client(api.url, api.key, retries=_FAST) as client, Sandbox.create(client=client) as sandbox:
        api.only_files().write("/f", data)
        api.cuts = list(cuts)
        assert sandbox.files.read("/f") == data


def test_a_file_replaced_while_it_is_read_is_told(api: StubApi, files: Files, inside: StubFiles) -> None:
    inside.write("/f", b"a" * 100)
    api.cuts = [10]
    stream = files.stream("/f")
    next(stream)
    inside.write("/f", b"b" * 100)
    with pytest.raises(FileChangedError):
        list(stream)


@pytest.mark.parametrize("fault", [{"cut_input": 70_000}, {"drop": "before"}, {"drop": "after"}, {"status": 503}])
def test_an_upload_that_breaks_is_sent_again_whole(
    api: StubApi, files: Files, inside: StubFiles, tmp_path: Path, fault: dict[str, object]
) -> None:
    data = os.urandom(300_000)
    (tmp_path / "local").write_bytes(data)
    (tmp_path / "local").chmod(0o750)
    api.faults += [Fault("/files", **fault)]  # type: ignore[arg-type]
    seen: list[tuple[int, int | None]] = []
    files.upload(tmp_path / "local", "/there", progress=lambda done, total: seen.append((done, total)))
    assert inside.entries["/there"].data == data
    assert inside.entries["/there"].mode == "0750"
    assert seen[-1] == (300_000, 300_000)
    assert len(api.seen("/files")) == 2


def test_an_append_is_never_sent_twice(api: StubApi, files: Files, inside: StubFiles) -> None:
    api.faults += [Fault("/files", drop="after")]
    with pytest.raises(UnreachableError):
        files.write("/log", "once", append=True)
    assert inside.entries["/log"].data == b"once"


def test_a_removal_whose_answer_is_lost_is_done(api: StubApi, files: Files) -> None:
    files.write("/f", "x")
    api.faults += [Fault("/files", drop="after")]
    files.remove("/f")
    with pytest.raises(FileMissingError):
        files.remove("/f")


def test_trees_there_and_back(api: StubApi, files: Files, inside: StubFiles, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "program").write_bytes(b"#!/bin/sh\n" + bytes(1000))
    (source / "deep" / "program").chmod(0o755)
    (source / "empty").write_bytes(b"")
    (source / "grüße").write_text("text")
    (source / "link").symlink_to("deep/program")
    (source / "skip.pyc").write_bytes(b"no")
    os.mkfifo(source / "pipe")
    api.faults += [Fault("/archive", cut_input=500)]
    summary = files.upload(source, "/srv/app", exclude=["*.pyc"])
    assert summary == ArchiveSummary(files=3, directories=2, symlinks=1, bytes=1014)
    assert inside.entries["/srv/app/deep/program"].mode == "0755"
    assert "/srv/app/skip.pyc" not in inside.entries
    api.cuts = [600]
    done: list[int] = []
    files.download("/srv/app", target, progress=lambda count, _: done.append(count))
    assert (target / "deep" / "program").read_bytes() == b"#!/bin/sh\n" + bytes(1000)
    assert (target / "deep" / "program").stat().st_mode & 0o777 == 0o755
    assert (target / "link").readlink() == Path("deep/program")
    assert (target / "grüße").read_text() == "text"
    assert (target / "deep" / "er").is_dir()
    assert done


def test_a_download_is_whole_or_not_there(api: StubApi, files: Files, inside: StubFiles, tmp_path: Path) -> None:
    inside.write("/f", b"x" * 1000, "0640")
    api.cuts = [400, 300]
    assert files.download("/f", tmp_path) == tmp_path / "f"
    assert (tmp_path / "f").read_bytes() == b"x" * 1000
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
    api.cuts = [1] + [0] * 20
    with pytest.raises(UnreachableError):
        files.download("/f", tmp_path / "g")
    assert [one.name for one in tmp_path.iterdir()] == ["f"]


def _tar(*members: tuple[str, str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            if kind == "link":
                info.type, info.linkname, data = tarfile.SYMTYPE, data.decode(), b""  # noqa: PLW2901 - a link has none
            elif kind == "hard":
                info.type, info.linkname, data = tarfile.LNKTYPE, data.decode(), b""  # noqa: PLW2901 - the same
            elif kind == "device":
                info.type = tarfile.CHRTYPE
            info.size = len(data)
            info.mode = 0o6755
            archive.addfile(info, io.BytesIO(data))
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize(
    "members",
    [
        [("../out", "file", b"x")],
        [("/tmp/sandlot-out", "file", b"x")],
        [("a/../../out", "file", b"x")],
        [("l", "link", b"/etc")],
        [("l", "link", b"..")],
        [("d/l", "link", b"../../out")],
        [("d/x", "file", b""), ("l", "link", b"d/../..")],
        [("h", "hard", b"/etc/passwd")],
        [("dev", "device", b"")],
        [("here", "file", b"x")],
        [("here/x", "file", b"x")],
    ],
)
def test_nothing_is_unpacked_outside(tmp_path: Path, members: list[tuple[str, str, bytes]]) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    # What the user has there already may be a link; the archive must not write through it.
    (root / "here").symlink_to(outside)
    if members[0][0] == "here":
        Unpacker(root).unpack(_tar(*members))
        assert not (root / "here").is_symlink()
    else:
        with pytest.raises(UnsafeArchiveError):
            Unpacker(root).unpack(_tar(*members))
    assert list(outside.iterdir()) == []
    assert sorted(one.name for one in tmp_path.iterdir()) == ["outside", "root"]


def test_an_unpacked_file_gives_nobody_rights(tmp_path: Path) -> None:
    Unpacker(tmp_path / "new").unpack(_tar(("f", "file", b"x")))
    assert (tmp_path / "new" / "f").stat().st_mode & 0o7777 == 0o755


def test_a_packed_tree_is_as_long_as_was_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(700))
    (tmp_path / "d").mkdir()
    assert len(b"".join(pack(tmp_path))) == packed_bytes(tmp_path)


def test_a_watch_that_breaks_says_look_again(api: StubApi, files: Files, inside: StubFiles) -> None:
    api.cuts = [120]
    watch = files.watch("/")
    assert next(watch).kind == "ready"
    inside.write("/a", b"1")
    event = next(watch)
    assert (event.kind, event.path) == ("create", "/a")
    inside.write("/a", b"2")
    assert next(watch).kind == "overflow"
    inside.write("/b", b"3")
    assert next(watch).path == "/b"


async def test_the_async_files_do_the_same(api: StubApi, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(bytes(100_000))
    async with (
        AsyncClient(api.url, api.key, retries=_FAST) as client,
        await AsyncSandbox.create(client=client) as sandbox,
    ):
        api.cuts = [30_000]
        await sandbox.files.upload(tmp_path / "d", "/d")
        assert await sandbox.files.read("/d/f") == bytes(100_000)
        await sandbox.files.upload(tmp_path / "d" / "f", "/g")
        assert [one.name async for one in sandbox.files.iterate("/")] == ["d", "g", "home"]
        await sandbox.files.download("/d", tmp_path / "e")
    assert (tmp_path / "e" / "f").read_bytes() == bytes(100_000)
