"""Admission: whether one more sandbox fits. The node's word on this is the last."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sandboxd.contract.messages import Capacity, Resources
from sandboxd.contract.problems import ProblemError
from sandboxd.manager.host import Host

_EARLY: Final = 2
"""At this many times the memory floor the ready pool goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRules:
    """How much is promised of what there is."""

    max_sandboxes: int
    cpu_overcommit: float
    memory_overcommit: float
    disk_overcommit: float
    memory_reserve_mib: int
    memory_floor_mib: int
    disk_reserve_mib: int


class Admission:
    """Keeps what has been promised to whom. Not for two threads."""

    def __init__(self, rules: AdmissionRules, host: Host, memory_need_mib: Callable[[Resources], int]) -> None:
        """`memory_need_mib` says what a sandbox takes with the overhead of running it."""
        self._rules = rules
        self._memory_need_mib = memory_need_mib
        self._host = host
        self._sandboxes = _Promises(memory_need_mib)
        self._spare = _Promises(memory_need_mib)
        """Of the ready pool: given up whenever a sandbox needs the room."""
        self._present = Capacity(
            cpus=host.cpus(),
            memory_mib=max(0, host.memory_mib() - rules.memory_reserve_mib),
            disk_mib=max(0, host.disk_mib() - rules.disk_reserve_mib),
            sandboxes=rules.max_sandboxes,
        )

    def capacity(self) -> Capacity:
        """Return what is promised at most."""
        return Capacity(
            cpus=self._present.cpus * self._rules.cpu_overcommit,
            memory_mib=int(self._present.memory_mib * self._rules.memory_overcommit),
            disk_mib=int(self._present.disk_mib * self._rules.disk_overcommit),
            sandboxes=self._rules.max_sandboxes,
        )

    def used(self) -> Capacity:
        """Return what is promised to sandboxes now, overheads included; the ready pool takes nothing from anybody."""
        promised = self._sandboxes
        return Capacity(
            cpus=round(promised.cpus, 3),
            memory_mib=promised.memory_mib,
            disk_mib=promised.disk_mib,
            sandboxes=len(promised),
        )

    def under_pressure(self) -> bool:
        """Tell whether nothing is admitted for want of memory or disk, whatever is promised."""
        rules = self._rules
        scarce = self._host.memory_available_mib() < rules.memory_floor_mib
        return scarce or self._host.disk_free_mib() < rules.disk_reserve_mib

    def admit(self, sandbox_id: str, resources: Resources) -> None:
        """Promise resources; `impossible_resources` or `no_capacity` otherwise. Again for the same id: nothing.

        The ready pool is no reason to refuse; afterwards it may have to give way (`crowded`).
        """
        if sandbox_id in self._sandboxes:
            return
        self._require_possible(resources)
        self._require_room(resources)
        self.take(sandbox_id, resources)

    def spare(self, handle: str, resources: Resources) -> bool:
        """Count a sandbox of the ready pool, if there is room and no pressure at all; tells whether there is."""
        if self.pressed() or self._lacking(resources, len(self._sandboxes) + len(self._spare), spare=True):
            return False
        self._spare.add(handle, resources)
        return True

    def crowded(self) -> bool:
        """Tell whether sandboxes and ready pool together are more than there is room for."""
        return bool(self._lacking(None, len(self._sandboxes) + len(self._spare) - 1, spare=True))

    def pressed(self) -> bool:
        """Tell whether memory or disk get scarce: before sandboxes are refused for it, the ready pool goes."""
        rules = self._rules
        return (
            self._host.memory_available_mib() < _EARLY * rules.memory_floor_mib
            or self._host.disk_free_mib() < rules.disk_reserve_mib
        )

    def take(self, sandbox_id: str, resources: Resources) -> None:
        """Count a sandbox that is there already, whether or not it fits."""
        self._sandboxes.add(sandbox_id, resources)

    def release(self, sandbox_id: str) -> None:
        """Give back what was promised, to a sandbox or to one of the ready pool. Idempotent."""
        self._sandboxes.drop(sandbox_id)
        self._spare.drop(sandbox_id)

    def _require_possible(self, resources: Resources) -> None:
        overhead_mib = self._memory_need_mib(resources) - resources.memory_mib
        wants = (
            ("cpus", resources.cpus, self._present.cpus),
            ("memory_mib", resources.memory_mib, self._present.memory_mib - overhead_mib),
            ("disk_mib", resources.disk_mib, self._present.disk_mib),
        )
        for name, wanted, limit in wants:
            if wanted > limit:
                raise ProblemError(
                    "impossible_resources",
                    f"resources.{name} {wanted:g} is more than the {limit:g} this node has.",
                    hint=f"Ask for {name} of at most {limit:g}.",
                    limit={name: limit},
                )

    def _require_room(self, resources: Resources) -> None:
        lacking = self._lacking(resources, len(self._sandboxes), spare=False)
        if self._host.memory_available_mib() < self._rules.memory_floor_mib:
            lacking.append("memory_pressure")
        if self._host.disk_free_mib() < self._rules.disk_reserve_mib:
            lacking.append("disk_pressure")
        if lacking:
            raise ProblemError(
                "no_capacity",
                f"The node has no room for it: {', '.join(lacking)}.",
                hint="Try again later, or delete sandboxes.",
                retry_after_seconds=5,
                lacking=lacking,
            )

    def _lacking(self, resources: Resources | None, others: int, *, spare: bool) -> list[str]:
        """Name what there is too little of for these resources beside what is promised, the ready pool's too or not."""
        capacity = self.capacity()
        sums = [self._sandboxes, self._spare] if spare else [self._sandboxes]
        cpus, memory_mib, disk_mib = (
            (resources.cpus, self._memory_need_mib(resources), resources.disk_mib) if resources else (0, 0, 0)
        )
        full = {
            "sandboxes": others + 1 > capacity.sandboxes,
            "cpus": sum(each.cpus for each in sums) + cpus > capacity.cpus,
            "memory_mib": sum(each.memory_mib for each in sums) + memory_mib > capacity.memory_mib,
            "disk_mib": sum(each.disk_mib for each in sums) + disk_mib > capacity.disk_mib,
        }
        return [name for name, is_full in full.items() if is_full]


class _Promises:
    """Resources by name, with their sums at hand."""

    def __init__(self, memory_need_mib: Callable[[Resources], int]) -> None:
        self._memory_need_mib = memory_need_mib
        self._by_name: dict[str, Resources] = {}
        self.cpus = 0.0
        self.memory_mib = 0
        self.disk_mib = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def add(self, name: str, resources: Resources) -> None:
        if name not in self._by_name:
            self._by_name[name] = resources
            self._count(resources, 1)

    def drop(self, name: str) -> None:
        resources = self._by_name.pop(name, None)
        if resources is not None:
            self._count(resources, -1)

    def _count(self, resources: Resources, sign: int) -> None:
        self.cpus = round(self.cpus + sign * resources.cpus, 6)
        self.memory_mib += sign * self._memory_need_mib(resources)
        self.disk_mib += sign * resources.disk_mib
