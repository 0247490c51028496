"""Our reader of tar archives, with the library's as oracle; and whatever comes, it ends with an answer or a refusal."""

import io
import os
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_kit import Made, Tree, cut, info_of, plain_tar, to_tar, trees
from sandboxd.images.erofs import ImageBuildError, SourceDamagedError, SourceTooLargeError
from sandboxd.images.pax import number, pax_number, pax_records, pax_time
from sandboxd.images.tar_entry import Entry, Kind
from sandboxd.images.tar_sparse import checked
from sandboxd.images.tar_stream import ByteStream, TarStream, shown

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)
RELAXED = settings(deadline=None, max_examples=150, suppress_health_check=SLOW)


def read(data: bytes, sizes: Sequence[int] = ()) -> list[tuple[Entry, bytes]]:
    stream = TarStream(ByteStream(cut(data, sizes)))
    return [(entry, joined(stream, entry)) for entry in stream]


def joined(stream: TarStream, entry: Entry) -> bytes:
    pieces = stream.pieces(entry) if entry.kind is Kind.FILE else ()
    return b"".join(piece if isinstance(piece, bytes) else bytes(piece) for piece in pieces)


KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.AREGTYPE: Kind.FILE,
    tarfile.LNKTYPE: Kind.HARD_LINK,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.FIFOTYPE: Kind.PIPE,
    tarfile.GNUTYPE_SPARSE: Kind.FILE,
}


def same_as_library(data: bytes, found: list[tuple[Entry, bytes]]) -> None:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        members = archive.getmembers()
        assert len(members) == len(found)
        for member, (entry, content) in zip(members, found, strict=True):
            # The library takes the slash from the names of directories.
            assert os.fsencode(member.name) == entry.name.rstrip(b"/")
            assert KINDS[member.type] is entry.kind
            assert (member.mode & 0o7777, member.uid, member.gid) == (entry.mode, entry.uid, entry.gid)
            assert abs(member.mtime - entry.mtime_ns / 1e9) < 1e-3
            if entry.kind in {Kind.SYMLINK, Kind.HARD_LINK}:
                assert os.fsencode(member.linkname) == entry.link
            if member.isfile():
                file = archive.extractfile(member)
                assert file is not None
                assert file.read() == content
                assert len(content) == entry.size


@RELAXED
@given(
    tree=trees(), kind=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), sizes=st.lists(st.integers(1, 4000))
)
def test_it_reads_what_the_library_reads(tree: Tree, kind: int, sizes: list[int]) -> None:
    data = to_tar(tree, kind)
    same_as_library(data, read(data, sizes))


@RELAXED
@given(name=st.from_regex(r"[a-z]{1,40}(/[a-z]{1,40}){0,5}", fullmatch=True), mode=st.integers(0, 0o7777))
def test_it_reads_old_headers(name: str, mode: int) -> None:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo(name)
        info.mode = mode
        archive.addfile(info)
    same_as_library(written.getvalue(), read(written.getvalue()))


@RELAXED
@given(tree=trees(8), data=st.data())
def test_damage_is_refused_or_read_but_nothing_else(tree: Tree, data: st.DataObject) -> None:
    archive = bytearray(to_tar(tree, data.draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(archive) - 1))
        archive[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del archive[data.draw(st.integers(0, len(archive))) :]
    bounded(bytes(archive))


@RELAXED
@given(data=st.data(), tree=trees(4))
def test_headers_with_right_checksums_and_wrong_everything(tree: Tree, data: st.DataObject) -> None:
    archive = bytearray(to_tar(tree, tarfile.GNU_FORMAT))
    for _ in range(data.draw(st.integers(1, 3))):
        start = 512 * data.draw(st.integers(0, len(archive) // 512 - 1))
        at, length = data.draw(
            st.sampled_from([(100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (345, 167), (157, 100)])
        )
        new = data.draw(st.binary(min_size=length, max_size=length))
        archive[start + at : start + at + length] = new
        header = archive[start : start + 512]
        total = 256 + sum(header[:148]) + sum(header[156:])
        archive[start + 148 : start + 156] = b"%06o\0 " % total
    bounded(bytes(archive))


@RELAXED
@given(data=st.binary(max_size=3000))
def test_noise_is_refused_or_read_but_nothing_else(data: bytes) -> None:
    bounded(data)


def bounded(data: bytes) -> None:
    stream = TarStream(ByteStream([data]))
    seen = 0
    try:
        for entry in stream:
            for piece in stream.pieces(entry) if entry.kind is Kind.FILE else ():
                seen += len(piece) if isinstance(piece, bytes) else 0
                assert seen <= len(data)
    except ImageBuildError:
        pass


@pytest.mark.parametrize(
    "form",
    [
        "--format=gnu",
        "--format=pax --sparse-version=0.0",
        "--format=pax --sparse-version=0.1",
        "--format=pax --sparse-version=1.0",
    ],
)
@pytest.mark.parametrize("stretches", [0, 1, 3, 40])
def test_sparse_files_have_their_holes(tmp_path: Path, form: str, stretches: int) -> None:
    with (tmp_path / "s").open("wb") as file:
        for number_ in range(stretches):
            file.seek(number_ * 200_000 + 65536)
            file.write(b"data%d" % number_ * 1000)
        file.truncate(stretches * 200_000 + 3_000_001)
    (tmp_path / "z").write_bytes(b"behind")
    subprocess.run(["tar", "-S", *form.split(), "-cf", "t.tar", "s", "z"], cwd=tmp_path, check=True)
    data = (tmp_path / "t.tar").read_bytes()
    assert len(data) < 1_000_000
    (sparse, content), (_, behind) = read(data, [777])
    assert (sparse.name, behind) == (b"s", b"behind")
    assert content == (tmp_path / "s").read_bytes()
    assert sparse.size == len(content)


def test_sparse_maps_that_lie() -> None:
    assert checked([(0, 5), (10, 0), (7, 3)], 10, 8, "f") == [(0, 5), (7, 3)]
    for rows, size, stored in (([(5, 5), (0, 5)], 20, 10), ([(0, 5)], 4, 5), ([(0, 5)], 9, 4), ([(0, 1 << 60)], 9, 5)):
        with pytest.raises(SourceDamagedError):
            checked(rows, size, stored, "f")


def header(name: str, kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_headers_are_bounded() -> None:
    endless = [header("long", b"L", 2_000_000), header("global", b"g", 1 << 40), header("pax", b"x", 1 << 62)]
    for data in endless:
        with pytest.raises(SourceTooLargeError, match="header of"):
            read(data)
    row = header("x", b"L", 5) + b"name\0".ljust(512, b"\0")
    with pytest.raises(SourceTooLargeError, match="headers for one file"):
        read(row * 20 + plain_tar(info_of(b"f", Made("file"))))
    record = b"%07d k%03d=" + b"v" * 500_000 + b"\n"
    rows = [record % (500_000 + 14, key) for key in range(3)]
    data = b"".join(header("g", b"g", len(value)) + value.ljust(-(-len(value) // 512) * 512, b"\0") for value in rows)
    with pytest.raises(SourceTooLargeError, match="global headers"):
        read(data + plain_tar(info_of(b"f", Made("file"))))


@pytest.mark.parametrize("data", [b"", b"x" * 511, b"x" * 512, b"\0" * 100])
def test_no_archive(data: bytes) -> None:
    with pytest.raises(SourceDamagedError):
        read(data)


def test_an_archive_cut_off_anywhere_is_refused_or_ends_at_a_border() -> None:
    whole = plain_tar((info_of(b"one", Made("file")), b"1" * 700), (info_of(b"two", Made("file")), b"2"))
    for end in range(len(whole)):
        stream = TarStream(ByteStream([whole[:end]]))
        try:
            names = [(entry.name, joined(stream, entry)) for entry in stream]
        except SourceDamagedError:
            continue
        assert names in ([(b"one", b"1" * 700)], [(b"one", b"1" * 700), (b"two", b"2")])
        assert stream.ended == (end >= 5120)


def test_numbers_of_headers() -> None:
    assert [number(field) for field in (b"0000644\0", b" 644 \0xx", b"\0" * 8, b"\x80" + bytes(6) + b"\x07")] == [
        420,
        420,
        0,
        7,
    ]
    assert number(b"\xff" * 8) == -1
    for field in (b"0000_644", b"-0000644", b"0x000644", b"00000698", b"+0000644"):
        with pytest.raises(SourceDamagedError):
            number(field)


def test_records() -> None:
    assert pax_records(b"12 path=abc\n6 a=b\n\0\0") == [(b"path", b"abc"), (b"a", b"b")]
    for data in (b"5 a=b\n", b"99 a=b\n", b"6 a=bx", b"x", b"-6 a=b\n", b"0 a=b\n", b"4 =\n", b"5 ab\n", b"3 \n"):
        with pytest.raises(SourceDamagedError):
            pax_records(data)
    assert [pax_time(value) for value in (b"1", b"1.5", b"0.123456789123", b"-1.25")] == [
        10**9,
        15 * 10**8,
        123456789,
        -125 * 10**7,
    ]
    for value in (b"", b".5", b"1e9", b"nan", b"1.x", b"9" * 40):
        with pytest.raises(SourceDamagedError):
            pax_time(value)
    with pytest.raises(SourceDamagedError):
        pax_number(b"-1")


def test_names_are_shown_tame() -> None:
    assert shown(b"a\x1b[2Jb\xff") == "a�[2Jb�"
    assert len(shown(b"x" * 5000)) < 130
