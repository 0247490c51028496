"""What the node says to Prometheus, drawn from it at the moment it is asked. No sandbox ids: they would never end."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sandboxd.contract.states import NODE_STATES
from sandboxd.manager.host import Host
from sandboxd.manager.manager import Manager

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_MIB: Final = 1024 * 1024


class Meters:
    """The node's metrics. Rendering asks the host, which costs a few small reads."""

    def __init__(self, manager: Manager, host: Host, *, version: str, runtime: str) -> None:
        self._manager = manager
        self._host = host
        self._version = version
        self._runtime = runtime
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        """Return the text format."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing is asked at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Draw every metric (the registry's call)."""
        yield from self._sandboxes()
        yield from self._happened()
        yield from self._room()
        info = GaugeMetricFamily("sandlot_node_info", "What runs here.", labels=["version", "runtime"])
        info.add_metric([self._version, self._runtime], 1)
        yield info

    def _sandboxes(self) -> Iterator[Metric]:
        states = Counter(runner.life.state for runner in self._manager.runners.values())
        family = GaugeMetricFamily("sandlot_node_sandboxes", "Sandboxes on the node, by state.", labels=["state"])
        for state in sorted(NODE_STATES):
            family.add_metric([state.value], states.get(state, 0))
        yield family
        yield GaugeMetricFamily(
            "sandlot_node_leftovers",
            "Ended sandboxes of which something could not be removed yet.",
            value=len(self._manager.leftovers),
        )

    def _happened(self) -> Iterator[Metric]:
        counts = self._manager.tools.counts
        starts = CounterMetricFamily("sandlot_node_starts", "Starts by outcome.", labels=["outcome"])
        for outcome in ("running", "failed", "overtaken"):
            starts.add_metric([outcome], counts.starts[outcome])
        yield starts
        ends = CounterMetricFamily("sandlot_node_ends", "Ended sandboxes.", labels=["state", "reason"])
        for (state, reason), number in sorted(counts.ends.items()):
            ends.add_metric([state, reason], number)
        yield ends
        adoptions = GaugeMetricFamily(
            "sandlot_node_adoptions", "Sandboxes found when the agent started, by outcome.", labels=["outcome"]
        )
        for outcome in ("adopted", "buried", "failed"):
            adoptions.add_metric([outcome], counts.adoptions[outcome])
        yield adoptions
        yield CounterMetricFamily(
            "sandlot_node_cleanup_errors", "Tries to undo something that failed.", value=counts.cleanup_errors
        )
        yield CounterMetricFamily(
            "sandlot_node_ledger_write_errors",
            "Records that could not be written.",
            value=self._manager.tools.ledger.write_errors,
        )
        decisions = CounterMetricFamily(
            "sandlot_node_egress_decisions", "What was decided about traffic.", labels=["verdict", "via"]
        )
        for (verdict, via), number in sorted(self._manager.tools.decisions.counts.items()):
            decisions.add_metric([verdict, via], number)
        yield decisions
        yield GaugeMetricFamily(
            "sandlot_node_api_reachable", "1 when the api took the last report.", value=int(counts.api_reachable)
        )

    def _room(self) -> Iterator[Metric]:
        host, admission = self._host, self._manager.admission
        for name, text, mib in (
            ("memory_bytes", "Memory of the node.", host.memory_mib()),
            ("memory_available_bytes", "Memory that could be had now.", host.memory_available_mib()),
            ("disk_bytes", "Size of the disk that sandboxes write to.", host.disk_mib()),
            ("disk_free_bytes", "What of it is free.", host.disk_free_mib()),
        ):
            yield GaugeMetricFamily(f"sandlot_node_{name}", text, value=mib * _MIB)
        capacity, used = admission.capacity(), admission.used()
        family = GaugeMetricFamily(
            "sandlot_node_promised_ratio", "Promised to sandboxes, of what may be promised.", labels=["resource"]
        )
        for resource in ("cpus", "memory_mib", "disk_mib", "sandboxes"):
            most = getattr(capacity, resource)
            family.add_metric([resource.removesuffix("_mib")], getattr(used, resource) / most if most else 0)
        yield family
        yield GaugeMetricFamily(
            "sandlot_node_pressure",
            "1 while nothing is admitted for want of memory or disk.",
            value=int(admission.under_pressure()),
        )
