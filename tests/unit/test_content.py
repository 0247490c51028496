"""Content is kept once, in units of at most 1 MiB, and comes back as it was."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxd.images.content import EMPTY, UNIT_BYTES, Contents, Spool
from sandboxd.images.crc32c import crc32c

SLOW = (HealthCheck.function_scoped_fixture, HealthCheck.data_too_large, HealthCheck.too_slow)


def bytes_of(contents: Contents, content: int) -> bytes:
    sink = contents.sink
    return b"".join(sink.get(unit) or bytes(sink.units.lengths[unit]) for unit in contents.units(content))


@settings(deadline=None, max_examples=40, suppress_health_check=SLOW)
@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=9),
            st.integers(0, 3 * UNIT_BYTES),
            st.integers(0, 2 * UNIT_BYTES).map(lambda size: b"z" * size),
            st.sampled_from([UNIT_BYTES, b"q" * UNIT_BYTES]),
        ),
        max_size=5,
    )
)
def test_files_are_cut_alike_however_they_come(tmp_path: Path, pieces: list[bytes | int]) -> None:
    (tmp_path / "spool").unlink(missing_ok=True)
    whole = b"".join(piece if isinstance(piece, bytes) else bytes(piece) for piece in pieces)
    with Spool(tmp_path / "spool") as spool:
        contents = Contents(spool)
        content = contents.add(pieces)
        assert contents.add([whole]) == content
        assert contents.add([whole[:7], whole[7:]]) == content
        assert contents.size(content) == len(whole)
        assert bytes_of(contents, content) == whole
        lengths = [spool.units.lengths[unit] for unit in contents.units(content)]
        assert all(length == UNIT_BYTES for length in lengths[:-1])


def test_the_same_bytes_are_kept_once_and_zeros_not_at_all(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        contents = Contents(spool)
        assert spool.put(b"") == EMPTY
        first = contents.add([b"a" * UNIT_BYTES, b"b" * UNIT_BYTES])
        assert first < 0
        assert contents.add([b"a" * UNIT_BYTES, b"b" * UNIT_BYTES, 10 * UNIT_BYTES]) != first
        assert contents.add([b"a" * UNIT_BYTES]) == next(iter(contents.units(first)))
        assert spool.get(spool.put(bytes(5000))) is None
        assert spool.get(spool.put(b"\0" * 99 + b"x")) == b"\0" * 99 + b"x"
    assert (tmp_path / "spool").stat().st_size == 2 * UNIT_BYTES + 100


def test_many_units_are_found_again(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        units = [spool.put(b"%d" % number) for number in range(20_000)]
        assert len(set(units)) == 20_000
        assert [spool.put(b"%d" % number) for number in range(20_000)] == units
        assert all(spool.get(units[number]) == b"%d" % number for number in range(0, 20_000, 97))
        assert spool.units.find(b"\0" * 32) is None


@pytest.mark.parametrize(("data", "checksum"), [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA)])
def test_checksums(data: bytes, checksum: int) -> None:
    assert crc32c(data) ^ 0xFFFFFFFF == checksum
