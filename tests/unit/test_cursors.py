"""Cursors: opaque, sealed, and short-lived."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.services.cursors import LIFETIME_US, Position, seal, unseal
from sandboxd.contract.problems import ProblemError

SECRET = b"s" * 32
POSITION = Position(1_700_000_000_000_000, "sbx" + "a" * 20)
NOW = 1_800_000_000_000_000


def test_a_cursor_opens_where_it_was_made() -> None:
    assert unseal(SECRET, "scope", seal(SECRET, "scope", POSITION, NOW), NOW + LIFETIME_US) == POSITION


@pytest.mark.parametrize(
    ("secret", "scope", "now"),
    [(b"t" * 32, "scope", NOW), (SECRET, "other", NOW), (SECRET, "scope", NOW + LIFETIME_US + 1)],
)
def test_not_elsewhere_and_not_for_ever(secret: bytes, scope: str, now: int) -> None:
    with pytest.raises(ProblemError) as caught:
        unseal(secret, scope, seal(SECRET, "scope", POSITION, NOW), now)
    assert caught.value.code == "invalid_cursor"


@given(st.text(max_size=100) | st.binary(max_size=80).map(lambda data: data.hex()))
def test_anything_else_is_no_cursor(text: str) -> None:
    with pytest.raises(ProblemError):
        unseal(SECRET, "scope", text, NOW)
