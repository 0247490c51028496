"""Admission: whether one more sandbox fits. The node's word on this is the last."""

from collections.abc import Callable
from dataclasses import dataclass

from sandboxd.contract.messages import Capacity, Resources
from sandboxd.contract.problems import ProblemError
from sandboxd.manager.host import Host


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
        self._promised: dict[str, Resources] = {}
        self._cpus = 0.0
        self._memory_mib = 0
        self._disk_mib = 0
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
        """Return what is promised now, overheads included."""
        return Capacity(
            cpus=round(self._cpus, 3),
            memory_mib=self._memory_mib,
            disk_mib=self._disk_mib,
            sandboxes=len(self._promised),
        )

    def under_pressure(self) -> bool:
        """Tell whether nothing is admitted for want of memory or disk, whatever is promised."""
        rules = self._rules
        scarce = self._host.memory_available_mib() < rules.memory_floor_mib
        return scarce or self._host.disk_free_mib() < rules.disk_reserve_mib

    def admit(self, sandbox_id: str, resources: Resources) -> None:
        """Promise resources; `impossible_resources` or `no_capacity` otherwise. Again for the same id: nothing."""
        if sandbox_id in self._promised:
            return
        self._require_possible(resources)
        self._require_room(resources)
        self.take(sandbox_id, resources)

    def take(self, sandbox_id: str, resources: Resources) -> None:
        """Count a sandbox that is there already, whether or not it fits."""
        if sandbox_id not in self._promised:
            self._promised[sandbox_id] = resources
            self._count(resources, 1)

    def release(self, sandbox_id: str) -> None:
        """Give back what was promised. Idempotent."""
        resources = self._promised.pop(sandbox_id, None)
        if resources is not None:
            self._count(resources, -1)

    def _count(self, resources: Resources, sign: int) -> None:
        self._cpus += sign * resources.cpus
        self._memory_mib += sign * self._memory_need_mib(resources)
        self._disk_mib += sign * resources.disk_mib

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
        capacity = self.capacity()
        full = {
            "sandboxes": len(self._promised) + 1 > capacity.sandboxes,
            "cpus": self._cpus + resources.cpus > capacity.cpus,
            "memory_mib": self._memory_mib + self._memory_need_mib(resources) > capacity.memory_mib,
            "disk_mib": self._disk_mib + resources.disk_mib > capacity.disk_mib,
            "memory_pressure": self._host.memory_available_mib() < self._rules.memory_floor_mib,
            "disk_pressure": self._host.disk_free_mib() < self._rules.disk_reserve_mib,
        }
        lacking = [name for name, is_full in full.items() if is_full]
        if lacking:
            raise ProblemError(
                "no_capacity",
                f"The node has no room for it: {', '.join(lacking)}.",
                hint="Try again later, or delete sandboxes.",
                retry_after_seconds=5,
                lacking=lacking,
            )
