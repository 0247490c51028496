"""The guest protocol: archives in and out, and what an archive must never do."""

import gzip
import http.client
import io
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from guest_kit import RawGuest, Reply, eventually, process_id, zstd_of

Entry = tuple[tarfile.TarInfo, bytes]


@pytest.fixture(name="guest")
def _guest(raw_guest: RawGuest) -> RawGuest:
    return raw_guest


@pytest.fixture(name="base")
def _base(guest: RawGuest) -> str:
    """A directory that everybody may write to."""
    place = f"/tmp/{process_id()}"
    guest.text(["mkdir", "-m", "777", place])
    return place


def entry(name: str, data: bytes = b"", **fields: Any) -> Entry:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in ({"mode": 0o644, "mtime": 1_000_000_000} | fields).items():
        setattr(info, field, value)
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Entry:
    return entry(name, type=kind, linkname=target)


def directory(name: str, mode: int = 0o755) -> Entry:
    return entry(name, type=tarfile.DIRTYPE, mode=mode)


def tar_of(*entries: Entry, **options: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def put(guest: RawGuest, path: str, data: bytes, **query: Any) -> Reply:
    return guest.call("PUT", "archive", data, query={"path": path, "overwrite": 1} | query)


def counts(reply: Reply) -> tuple[int, int, int, int]:
    assert reply.status == 200, reply
    found = reply.json
    return found["files"], found["directories"], found["symlinks"], found["bytes"]


def get(guest: RawGuest, path: str, **query: Any) -> dict[str, tarfile.TarInfo]:
    reply = guest.call("GET", "archive", query={"path": path, **query})
    assert reply.status == 200, reply
    with tarfile.open(fileobj=io.BytesIO(reply.body)) as archive:
        return {info.name: info for info in archive.getmembers()}


def test_a_tree_goes_in_and_comes_out(guest: RawGuest, base: str) -> None:
    long = "l" * 200 + "/" + "m" * 200
    data = tar_of(
        directory("dir", 0o500),
        entry("dir/file", b"content", mode=0o4640),
        entry("empty"),
        entry(long, b"x"),
        entry("é/ü", b"y"),
        link("dir/link", "file"),
        link("absolute", "/etc/passwd"),
        link("second", "dir/file", tarfile.LNKTYPE),
        entry("fifo", type=tarfile.FIFOTYPE),
    )
    for format_, packed in (("tar", data), ("tar.gz", gzip.compress(data)), ("tar.zst", zstd_of(data))):
        place = f"{base}/{format_}/new"
        assert counts(put(guest, place, packed, format=format_, user="12345")) == (6, 3, 2, 9)
        assert guest.text(["stat", "-c", "%a %u %Y %h", f"{place}/dir/file"]) == "640 12345 1000000000 2\n"
        assert guest.text(["stat", "-c", "%a %Y", f"{place}/dir"]) == "500 1000000000\n"
        assert guest.text(["cat", f"{place}/dir/link", f"{place}/{long}", f"{place}/é/ü"]) == "contentxy"
        found = get(guest, place)
        assert set(found) == {
            "dir", "dir/file", "empty", "l" * 200, long, "é", "é/ü", "dir/link", "absolute", "second", "fifo",
        }  # fmt: skip
        assert (found["second"].type, found["second"].linkname) == (tarfile.LNKTYPE, "dir/file")
        assert (found["absolute"].linkname, found["dir/file"].size, found["dir/file"].mode) == ("/etc/passwd", 7, 0o640)


@pytest.mark.parametrize("format_", ["tar", "tar.gz"])
def test_what_comes_out_goes_in_again(guest: RawGuest, base: str, format_: str) -> None:
    guest.text(
        f"mkdir -p {base}/from/deep/er; cd {base}/from; seq 1 200000 > deep/numbers; ln -s deep/numbers l; touch x"
    )
    reply = guest.call("GET", "archive", query={"path": f"{base}/from", "format": format_})
    assert counts(put(guest, f"{base}/to", reply.body, format=format_))[:3] == (2, 2, 1)
    assert guest.text(f"diff -r {base}/from {base}/to; stat -c %Y {base}/from/x {base}/to/x | uniq | wc -l") == "1\n"


def test_one_file_is_an_archive_too(guest: RawGuest, base: str) -> None:
    guest.text(f"echo x > {base}/file")
    assert list(get(guest, f"{base}/file")) == ["file"]
    guest.call("GET", "archive", query={"path": f"{base}/none"}).refused(404, "file_not_found")
    guest.call("GET", "archive", query={"path": "/dev/null"}).refused(400, "invalid_path")


def test_what_is_excluded(guest: RawGuest, base: str) -> None:
    guest.text(
        f"cd {base}; mkdir -p a/node_modules/x a/src b/cache; touch a/node_modules/x/y a/src/m.py a/src/m.pyc b/cache/c"
    )
    cases: list[tuple[list[str], set[str]]] = [
        (["node_modules", "*.pyc"], {"a", "a/src", "a/src/m.py", "b", "b/cache", "b/cache/c"}),
        (["a/*"], {"a", "b", "b/cache", "b/cache/c"}),
        (["/b", "a/**/y", "m.py[a-d]"], {"a", "a/node_modules", "a/node_modules/x", "a/src", "a/src/m.py"}),
        (["**"], set()),
    ]
    for patterns, expected in cases:
        query = "&".join(f"exclude={pattern}" for pattern in patterns).replace("*", "%2A")
        reply = guest.call("GET", f"archive?path={base}&{query}")
        with tarfile.open(fileobj=io.BytesIO(reply.body)) as archive:
            assert set(archive.getnames()) == expected, patterns


def test_a_file_that_cannot_be_read_breaks_the_archive(guest: RawGuest, base: str) -> None:
    guest.text(f"echo x > {base}/closed; chmod 600 {base}/closed")
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        guest.call("GET", "archive", query={"path": base, "user": "12345"})


def test_components_are_stripped(guest: RawGuest, base: str) -> None:
    data = tar_of(
        directory("top"), entry("top/a/b", b"x"), entry("other", b"y"), link("top/c", "top/a/b", tarfile.LNKTYPE)
    )
    assert counts(put(guest, base, data, strip_components=1)) == (2, 1, 0, 1)
    assert guest.text(["cat", f"{base}/a/b", f"{base}/c"]) == "xx"


def test_what_is_there_is_replaced_or_kept(guest: RawGuest, base: str) -> None:
    guest.text(f"echo old > {base}/file; echo kept > {base}/target; ln -s target {base}/link; mkdir {base}/dir")
    data = tar_of(entry("dir/x", b"1"), entry("file", b"new"), entry("link", b"new"))
    refused = put(guest, base, data, overwrite=0).refused(409, "already_exists")
    assert (refused["entry"], refused["extracted_files"]) == ("file", 1)
    assert guest.text(["cat", f"{base}/file"]) == "old\n"
    assert counts(put(guest, base, data)) == (3, 0, 0, 7)
    assert guest.text(f"cat {base}/file {base}/link {base}/target") == "newnewkept\n"
    put(guest, base, tar_of(entry("dir", b"x"))).refused(409, "is_directory")
    put(guest, base, tar_of(directory("file"))).refused(409, "not_a_directory")


UNSAFE: dict[str, Callable[[str], list[Entry]]] = {
    "absolute": lambda outside: [entry(f"{outside}/evil", b"x")],
    "up": lambda _: [entry("../evil", b"x")],
    "up in the middle": lambda _: [entry("a/../../evil", b"x")],
    "through its own link": lambda outside: [link("l", outside), entry("l/evil", b"x")],
    "through a link to what is above": lambda _: [link("l", ".."), entry("l/evil", b"x")],
    "a directory through a link": lambda outside: [link("l", outside), directory("l/evil")],
    "a directory that is a link": lambda outside: [link("l", outside), directory("l")],
    "a link through a link": lambda outside: [link("l", outside), link("l/evil", "x")],
    "a hard link to what is outside": lambda outside: [link("h", f"{outside}/secret", tarfile.LNKTYPE)],
    "a hard link upwards": lambda _: [link("h", "../secret", tarfile.LNKTYPE)],
    "a hard link through a link": lambda outside: [link("l", outside), link("h", "l/secret", tarfile.LNKTYPE)],
    "a device": lambda _: [entry("dev", type=tarfile.CHRTYPE, devmajor=1, devminor=5)],
    "a disk": lambda _: [entry("dev", type=tarfile.BLKTYPE)],
    "an unknown kind": lambda _: [entry("what", type=b"Z")],
}


@pytest.mark.parametrize("case", UNSAFE)
@pytest.mark.parametrize("user", ["root", "12345"])
def test_nothing_lands_outside(guest: RawGuest, base: str, case: str, user: str) -> None:
    outside = f"{base}/outside"
    guest.text(f"mkdir -m 777 {outside} {base}/in; echo s > {outside}/secret")
    data = tar_of(entry("first", b"1"), *UNSAFE[case](outside), entry("never", b"2"))
    refused = put(guest, f"{base}/in", data, user=user).refused(422, "unsafe_archive")
    assert refused["extracted_files"] == 1
    assert refused["entry"]
    assert (
        guest.text(f"cd {base}; find . -name evil -o -name never; cat outside/secret; stat -c %h outside/secret")
        == "s\n1\n"
    )


def test_a_link_that_was_there_is_not_followed(guest: RawGuest, base: str) -> None:
    guest.text(f"mkdir {base}/outside {base}/in; ln -s ../outside {base}/in/l")
    put(guest, f"{base}/in", tar_of(entry("l/evil", b"x"))).refused(422, "unsafe_archive")
    put(guest, f"{base}/in", tar_of(directory("l/evil"))).refused(422, "unsafe_archive")
    # but the target itself may be reached by one: that is the caller's own path
    assert counts(put(guest, f"{base}/in/l", tar_of(entry("fine", b"x")))) == (1, 0, 0, 1)
    assert guest.text(["ls", f"{base}/outside"]) == "fine\n"


def sparse_of(name: str, data: bytes, offset: int, size: int) -> bytes:
    """An archive of one file of GNU's old sparse kind: nothing but `data`, at `offset`."""
    info, _ = entry(name, data, type=b"S")
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:410] = b"%011o\0%011o\0" % (offset, len(data))
    head[483:495] = b"%011o\0" % size
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data.ljust(512, b"\0") + bytes(1024)


def test_a_sparse_file_takes_no_space(guest: RawGuest, base: str) -> None:
    data = sparse_of("big", b"end", 8_000_000_000, 8_000_000_003)
    assert counts(put(guest, base, data)) == (1, 0, 0, 8_000_000_003)
    assert guest.text(f"tail -c 3 {base}/big; stat -c %s {base}/big") == "end8000000003\n"
    endless = sparse_of("huge", b"x", 0, 1)
    endless = endless[:483] + b"\x80" + (2**50).to_bytes(11, "big") + endless[495:]
    head = bytearray(endless[:512])
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    put(guest, base, bytes(head) + endless[512:]).refused(422, "unsafe_archive")


def test_archives_that_cannot_be_read(guest: RawGuest, base: str) -> None:
    data = tar_of(entry("a", b"x" * 100_000), entry("b", b"y" * 100_000))
    for format_, packed in (
        ("tar", b"no archive" * 100),
        ("tar", data[:-30_000]),
        ("tar.gz", data),
        ("tar.gz", gzip.compress(data)[:-9]),
        ("tar.zst", zstd_of(data)[:-9]),
    ):
        put(guest, f"{base}/x", packed, format=format_).refused(400, "malformed_request")
    put(guest, f"{base}/x", data, format="zip").refused(422, "invalid_request")
    guest.text(["touch", f"{base}/file"])
    put(guest, f"{base}/file", data).refused(409, "not_a_directory")
    put(guest, "/etc/x", data, user="12345").refused(403, "permission_denied")


def test_an_archive_swapped_underneath_stays_inside(guest: RawGuest, base: str) -> None:
    """Somebody turns a directory into a link and back, over and over, while an archive goes into it."""
    guest.text(f"mkdir -m 777 {base}/outside {base}/in {base}/in/d; echo kept > {base}/outside/f0")
    swapper = guest.start(["python3", "-c", SWAP, f"{base}/in/d", f"{base}/outside"], user="12345")["id"]
    try:
        guest.follow(swapper).until(lambda frames: len(frames) > 1)
        data = tar_of(*(entry(f"d/f{number % 7}", b"evil") for number in range(2000)))
        done = {200: 0, 422: 0, 409: 0, 404: 0}
        for _ in range(12):
            done[put(guest, f"{base}/in", data, user="0").status] += 1
        assert done[422] + done[200] + done[409]
        assert guest.text(f"cat {base}/outside/f0; ls {base}/outside") == "kept\nf0\n"
    finally:
        guest.signal(swapper, "SIGKILL")
        guest.ended(swapper)


SWAP = """
import os, sys
*places, outside = sys.argv[1:]
print('go', flush=True)
while True:
    for place in places:
        try:
            os.rename(place, place + '.aside')
            os.symlink(outside, place)
            os.unlink(place)
            os.rename(place + '.aside', place)
        except OSError:
            try: os.unlink(place)
            except OSError: pass
            try: os.rename(place + '.aside', place)
            except OSError: pass
"""


def test_a_removal_swapped_underneath_stays_inside(guest: RawGuest, base: str) -> None:
    """Many directories become links to another and back, while root removes the tree they are in."""
    guest.text(f"mkdir -p {base}/outside/deep {base}/in; chmod 777 {base}/in")
    guest.text(f"touch {base}/outside/kept {base}/outside/deep/kept")
    places = [f"{base}/in/{number}" for number in range(24)]
    swapper = guest.start(["python3", "-c", SWAP, *places, f"{base}/outside"], user="12345")["id"]
    try:
        guest.follow(swapper).until(lambda frames: len(frames) > 1)
        for _ in range(25):
            guest.run(["mkdir", "-p", *(f"{place}/x" for place in places)], user="12345")
            guest.call("DELETE", "files", query={"path": f"{base}/in", "recursive": 1})
            guest.text(f"mkdir -p -m 777 {base}/in")
        assert guest.text(f"cd {base}/outside; echo * deep/*") == "deep kept deep/kept\n"
    finally:
        guest.signal(swapper, "SIGKILL")
        guest.ended(swapper)


def test_writes_swapped_underneath_keep_to_the_users_rights(guest: RawGuest, base: str) -> None:
    """A directory of the user's own becomes a link to root's, over and over, while the user writes into it."""
    guest.text(f"mkdir -m 755 {base}/roots; mkdir -m 777 {base}/in {base}/in/d; echo kept > {base}/roots/f")
    swapper = guest.start(["python3", "-c", SWAP, f"{base}/in/d", f"{base}/roots"], user="12345")["id"]
    try:
        guest.follow(swapper).until(lambda frames: len(frames) > 1)
        statuses = [guest.put(f"{base}/in/d/f", b"evil", user="12345").status for _ in range(300)]
        statuses += [guest.put(f"{base}/in/d/f", b"evil", user="12345", append=1).status for _ in range(200)]
        statuses += [
            guest.call("PATCH", "files", query={"path": f"{base}/in/d/f", "mode": "0777", "user": "12345"}).status
            for _ in range(200)
        ]
        assert set(statuses) <= {200, 201, 403, 404}
        assert guest.text(f"cat {base}/roots/f; ls {base}/roots; stat -c %a {base}/roots/f") == "kept\nf\n644\n"
    finally:
        guest.signal(swapper, "SIGKILL")
        guest.ended(swapper)


def test_an_upload_cut_short_says_so(guest: RawGuest, base: str) -> None:
    data = tar_of(entry("a", b"x" * 3_000_000))
    connection = guest.connect()
    connection.putrequest("PUT", f"/v1/archive?path={base}/cut&overwrite=1")
    connection.putheader("Authorization", f"Bearer {guest.token}")
    connection.putheader("Content-Length", str(len(data)))
    connection.endheaders()
    connection.send(data[:1_000_000])
    eventually(lambda: guest.run(["test", "-e", f"{base}/cut/a"]).exit["exit_code"] == 0)
    connection.close()
    # what was extracted stays: not undone, and the caller knows nothing else than that it broke
    assert guest.text(["ls", f"{base}/cut"]) == "a\n"
