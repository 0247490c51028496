"""The ready pool's targets, and which sandboxes are alike."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.contract.ids import is_handle, is_id, new_handle, new_id
from sandboxd.contract.messages import ReadySandboxes, Resources
from sandboxd.contract.ready import ReadyKey, key_of, ready_key
from sandboxd.manager.targets import MEMORY_SECONDS, Demand, PoolRules, targets

RULES = PoolRules(most=10, bridge_seconds=10)


def a_key(memory_mib: int = 1024) -> ReadyKey:
    return ready_key("img" + "a" * 20, Resources(memory_mib=memory_mib))


def test_what_stands_ready_needs_no_demand() -> None:
    assert targets({}, {a_key(): 4}, RULES) == {a_key(): 4}


def test_demand_adds_to_what_stands_ready_only_beyond_it() -> None:
    assert targets({a_key(): 0.3}, {a_key(): 4}, RULES) == {a_key(): 4}
    assert targets({a_key(): 0.6}, {a_key(): 4}, RULES) == {a_key(): 6}


def test_what_was_asked_for_once_is_not_kept() -> None:
    assert targets({a_key(): 1 / MEMORY_SECONDS}, {}, RULES) == {}
    assert targets({a_key(): 3 / MEMORY_SECONDS}, {}, RULES) == {a_key(): 1}


def test_the_most_wanted_come_first_when_there_is_not_room_for_all() -> None:
    rates = {a_key(512): 0.2, a_key(256): 5.0}
    assert targets(rates, {a_key(): 4}, RULES) == {a_key(): 4, a_key(256): 6}
    assert targets(rates, {a_key(): 40}, RULES) == {a_key(): 10}
    assert targets(rates, {a_key(): 4}, PoolRules(most=0, bridge_seconds=10)) == {}


KEYS = st.integers(min_value=64, max_value=80).map(a_key)


@given(
    st.dictionaries(KEYS, st.floats(min_value=0, max_value=100)),
    st.dictionaries(KEYS, st.integers(min_value=0, max_value=20), max_size=3),
    st.integers(min_value=0, max_value=40),
)
def test_never_more_than_the_most(rates: dict[ReadyKey, float], standing: dict[ReadyKey, int], most: int) -> None:
    chosen = targets(rates, standing, PoolRules(most=most, bridge_seconds=10))
    assert sum(chosen.values()) <= most
    assert all(count > 0 for count in chosen.values())


def test_an_asking_counts_less_the_longer_ago_it_was() -> None:
    demand = Demand()
    demand.note(a_key(), 100)
    demand.note(a_key(), 100)
    assert demand.rates(100) == {a_key(): pytest.approx(2 / 60)}
    assert demand.rates(160) == {a_key(): pytest.approx(2 / 60 * 0.3679, rel=0.01)}
    assert demand.rates(1000) == {}


def test_kinds_made_up_by_callers_are_bounded() -> None:
    demand = Demand()
    for _ in range(3):
        demand.note(a_key(1024), 0)
    for size in range(64, 1000):
        demand.note(a_key(size), 1)
    rates = demand.rates(1)
    assert len(rates) == 256
    assert max(rates, key=lambda each: rates[each]) == a_key(1024)


def test_what_cannot_be_changed_later_makes_the_difference() -> None:
    key = a_key()
    assert key == ready_key(key.image_id, Resources(cpus=0.1, max_processes=16))
    assert key == ready_key(key.image_id, Resources(cpus=2))
    for other in (Resources(cpus=2.1), Resources(memory_mib=1025), Resources(disk_mib=64)):
        assert key != ready_key(key.image_id, other)
    assert ready_key(key.image_id, key.resources) == key


def test_a_reported_kind_is_the_same_kind() -> None:
    key = a_key()
    row = ReadySandboxes(
        image_id=key.image_id, memory_mib=key.memory_mib, processors=key.processors, disk_mib=key.disk_mib, ready=1
    )
    assert key_of(row) == key


def test_no_call_can_name_a_handle_of_the_pool() -> None:
    handle, sandbox_id = new_handle(os.urandom), new_id("sbx", os.urandom)
    assert len(handle) == len(sandbox_id)
    assert is_handle(handle)
    assert is_handle(sandbox_id)
    assert not is_id("sbx", handle)
    for other in ("sbx1", "lost+found", sandbox_id[1:], handle + "a", "sbxsbx1" + "a" * 16):
        assert not is_handle(other)
