"""Digests kept beside images, and what a worker says of the image it made."""

import hashlib
from pathlib import Path

import pytest

from sandboxd.builds import table
from sandboxd.images import unit_sums
from sandboxd.images.erofs_writer import Moves
from sandboxd.images.unit_sums import UnitSums

ROWS = [(4096 * at, 100 + at, hashlib.sha256(b"%d" % at).digest()) for at in range(20)]


def test_rows_are_found_again_in_whatever_order_they_came() -> None:
    known = unit_sums.parse(unit_sums.render(reversed(ROWS)))
    assert [known.find(offset, length) for offset, length, _ in ROWS] == [digest for _, _, digest in ROWS]
    assert known.find(4096, 100) is None
    assert known.find(4097, 101) is None
    assert list(known.within(4096, 3 * 4096)) == ROWS[1:3]
    assert list(known.within(4096, 2 * 4096 + 101)) == ROWS[1:2], "what ends behind the end is not inside"
    assert list(unit_sums.parse(unit_sums.render([])).within(0, 1 << 40)) == []


@pytest.mark.parametrize("at", [0, 20, 100])
def test_a_damaged_file_is_none(tmp_path: Path, at: int) -> None:
    data = bytearray(unit_sums.render(ROWS))
    data[at] ^= 1
    for bad in (bytes(data), bytes(data)[:-1], b""):
        with pytest.raises(ValueError, match="damaged"):
            unit_sums.parse(bad)
    image = tmp_path / "a.erofs"
    image.touch()
    sums = UnitSums(tmp_path)
    sums.keep(image, ROWS)
    kept = sums.path(image)
    assert kept is not None
    kept.write_bytes(data)
    assert sums.path(image) is None


def test_what_is_known_of_images_that_are_gone_goes_too(tmp_path: Path) -> None:
    sums = UnitSums(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.erofs").touch()
        sums.keep(tmp_path / f"{name}.erofs", ROWS)
    (tmp_path / "a.erofs").unlink()
    sums.keep(tmp_path / "b.erofs", ROWS)
    assert [path.name for path in (tmp_path / ".units").iterdir()] == ["b"]


def said(moves: list[tuple[int, int, int]], units: list[tuple[int, int]]) -> bytes:
    return table.render(Moves(moves, units))


def test_a_table_comes_as_it_went() -> None:
    read = table.parse(said([(1, 7, 2), (3, 0, 1)], [(0, 4096), (16384, 1)]), 5 * 4096, 9 * 4096)
    assert read.moves == [(1, 7, 2), (3, 0, 1)]
    assert read.units == [(0, 4096), (16384, 1)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        said([(0, 0, 1)], [])[:-1],
        said([], []) + b"x",
        said([(4, 0, 2)], []),
        said([(0, 8, 2)], []),
        said([(0, 0, 0)], []),
        said([(1, 0, 2), (2, 0, 1)], []),
        said([(2**32 - 1, 0, 2**32 - 1)], []),
        said([], [(0, 0)]),
        said([], [(0, 2 << 20)]),
        said([], [(5 * 4096, 1)]),
        said([], [(0, 10), (5, 10)]),
    ],
)
def test_a_table_that_leads_elsewhere_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut off|nothing can|over each other"):
        table.parse(data, 5 * 4096, 9 * 4096)
