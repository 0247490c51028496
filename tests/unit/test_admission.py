"""Admission: what is promised comes back, and nothing beyond the limits is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.contract.messages import Resources
from sandboxd.contract.problems import ProblemError
from sandboxd.manager.admission import Admission, AdmissionRules
from sandboxd.manager.host import FakeHost
from sandboxd.manager.tombstones import Tombstones

RULES = AdmissionRules(
    max_sandboxes=10,
    cpu_overcommit=2,
    memory_overcommit=1,
    disk_overcommit=1,
    memory_reserve_mib=1024,
    memory_floor_mib=100,
    disk_reserve_mib=1000,
)


def need(resources: Resources) -> int:
    return resources.memory_mib + 64


SIZES = st.builds(
    Resources,
    cpus=st.floats(min_value=0.1, max_value=8),
    memory_mib=st.integers(min_value=64, max_value=9000),
    disk_mib=st.integers(min_value=64, max_value=90_000),
)


@given(st.lists(st.tuples(st.booleans(), st.integers(min_value=0, max_value=20), SIZES), max_size=60))
def test_never_more_than_the_capacity_and_never_less_than_nothing(
    steps: list[tuple[bool, int, Resources]],
) -> None:
    admission = Admission(RULES, FakeHost(cpus=4, memory_mib=8192, disk_mib=100_000), need)
    capacity = admission.capacity()
    for admits, number, resources in steps:
        if admits:
            try:
                admission.admit(str(number), resources)
            except ProblemError as problem:
                assert problem.code in {"no_capacity", "impossible_resources"}  # noqa: PT017 - refusals are expected
        else:
            admission.release(str(number))
        used = admission.used()
        assert used.cpus <= capacity.cpus + 1e-6
        assert used.memory_mib <= capacity.memory_mib
        assert used.disk_mib <= capacity.disk_mib
        assert used.sandboxes <= 10
    for number in range(21):
        admission.release(str(number))
    used = admission.used()
    assert (round(used.cpus, 3), used.memory_mib, used.disk_mib, used.sandboxes) == (0, 0, 0, 0)


def test_what_is_there_already_counts_even_beyond_the_limit() -> None:
    admission = Admission(RULES, FakeHost(cpus=1, memory_mib=2048, disk_mib=10_000), need)
    admission.take("a", Resources(memory_mib=4096))
    admission.take("a", Resources(memory_mib=4096))
    assert admission.used().memory_mib == 4160
    with pytest.raises(ProblemError, match="no_capacity"):
        admission.admit("b", Resources(memory_mib=64, disk_mib=64))


def test_the_ready_pool_takes_nothing_from_a_sandbox() -> None:
    host = FakeHost(cpus=4, memory_mib=4096, disk_mib=100_000)
    admission = Admission(RULES, host, need)
    assert admission.spare("ready1", Resources(memory_mib=1000))
    assert admission.spare("ready2", Resources(memory_mib=1000))
    assert not admission.spare("ready3", Resources(memory_mib=1000))
    assert admission.used().sandboxes == 0
    assert not admission.crowded()
    admission.admit("a", Resources(memory_mib=1900))
    assert admission.crowded()
    admission.release("ready1")
    assert not admission.crowded()
    admission.release("ready2")
    admission.release("ready2")
    with pytest.raises(ProblemError, match="no_capacity"):
        admission.admit("b", Resources(memory_mib=1100))


def test_under_pressure_nothing_is_made_ready_before_anything_is_refused() -> None:
    host = FakeHost(cpus=4, memory_mib=8192, disk_mib=100_000)
    admission = Admission(RULES, host, need)
    host.memory_available = 150
    assert admission.pressed()
    assert not admission.spare("ready", Resources())
    admission.admit("a", Resources())


def test_tombstones_keep_the_newest_and_the_highest() -> None:
    tombstones = Tombstones(most=2)
    tombstones.add("a", 5)
    tombstones.add("a", 3)
    assert tombstones.generation("a") == 5
    tombstones.add("b", 1)
    tombstones.add("c", 1)
    assert tombstones.generation("a") == 0
    assert tombstones.generation("c") == 1
