"""Strict query parameters of the api, times, and credentials that are one header or the other."""

import contextlib
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.routes.query import Query, parse_time
from sandboxd.contract.problems import ProblemError


def faults(query: Query) -> list[str]:
    with pytest.raises(ProblemError) as caught:
        query.check()
    errors = cast("list[dict[str, Any]]", caught.value.members["errors"])
    return [str(error["path"]) for error in errors]


def test_every_fault_is_named() -> None:
    query = Query(b"a=1&b=x&b=y&c=2.5&unknown=1&state=odd")
    assert query.integer("a", 5, 0, 9) == 1
    query.text("b", ".*")
    query.integer("c", 0, 0, 9)
    query.choices("state", ("running",))
    assert sorted(faults(query)) == ["query:b", "query:c", "query:state", "query:unknown"]


def test_metadata_takes_any_key() -> None:
    query = Query(b"metadata.a.b=1&metadata.c=%20x&metadata.d=")
    assert query.metadata() == {"a.b": "1", "c": " x", "d": ""}
    query.check()


@pytest.mark.parametrize("raw", [b"a=%ff", "a=\u00e9".encode()])
def test_what_is_no_utf8_is_refused(raw: bytes) -> None:
    with pytest.raises(ProblemError):
        Query(raw)


@given(st.binary(max_size=60))
def test_no_query_breaks_the_reader(raw: bytes) -> None:
    with contextlib.suppress(ProblemError):
        query = Query(raw)
        query.metadata()
        query.check()


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.5Z", 500_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01", None),
        ("1970-01-01T00:00:00", None),
        ("1970-13-01T00:00:00Z", None),
        ("1970-01-01T00:00:00+99:00", None),
        ("0001-01-01T00:00:00+23:59", -62_135_683_140_000_000),
    ],
)
def test_times(text: str, us: int | None) -> None:
    assert parse_time(text) == us
