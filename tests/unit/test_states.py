"""The table of states: closed, without ways out of an end, and walked at random."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.contract.states import (
    NODE_STATES,
    NOT_READY,
    SETTLED,
    TERMINAL,
    TRANSITIONS,
    IllegalTransitionError,
    SandboxState,
    is_legal,
    require_legal,
)

S = SandboxState


def test_no_row_twice_and_each_with_its_reason() -> None:
    assert len({(row.source, row.target) for row in TRANSITIONS}) == len(TRANSITIONS)
    assert all(row.because for row in TRANSITIONS)
    assert all(row.source is not row.target for row in TRANSITIONS)


def test_an_end_is_an_end() -> None:
    assert not [row for row in TRANSITIONS if row.source in TERMINAL]


def test_every_state_is_reached_and_can_end() -> None:
    reached = {S.PENDING}
    while more := {row.target for row in TRANSITIONS if row.source in reached} - reached:
        reached |= more
    assert reached == set(S)
    ends = set(TERMINAL)
    while more := {row.source for row in TRANSITIONS if row.target in ends} - ends:
        ends |= more
    assert ends == set(S)


def test_anything_alive_can_fail_or_be_lost() -> None:
    for state in set(S) - TERMINAL - {S.LOST}:
        assert is_legal(state, S.FAILED)
        assert is_legal(state, S.LOST)


def test_named_sets() -> None:
    assert {S.PENDING, S.LOST} & NODE_STATES == set()
    assert TERMINAL <= SETTLED
    assert not NOT_READY & SETTLED


def test_an_illegal_move_is_refused() -> None:
    with pytest.raises(IllegalTransitionError, match="from stopped to running"):
        require_legal(S.STOPPED, S.RUNNING)


@given(st.data())
def test_a_walk_ends_at_most_once(data: Any) -> None:
    state, ended = S.PENDING, 0
    for _ in range(40):
        target = data.draw(st.sampled_from(list(S)))
        if is_legal(state, target):
            require_legal(state, target)
            state = target
            ended += state in TERMINAL
    assert ended <= 1
    assert (state in TERMINAL) == bool(ended)
