"""Counters and times of the control plane, for Prometheus. No sandbox or project ids: they would never end."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from sandboxd.contract.messages import PoolReport

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
POOL_EVENTS: Final = ("hits", "misses", "boots", "boot_failures", "claim_failures")


class Metrics:
    """One set a platform."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each, which nobody asks for
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "sandlot_api_requests_total",
            "Answers by operation and status.",
            ["operation", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "sandlot_api_request_seconds",
            "Time to the start of an answer.",
            ["operation"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.creates = Counter(
            "sandlot_sandbox_creates_total", "Creates by outcome.", ["outcome"], registry=self.registry
        )
        self.ends = Counter(
            "sandlot_sandbox_ends_total",
            "Ended sandboxes by state and reason.",
            ["state", "reason"],
            registry=self.registry,
        )
        self.observed = Gauge(
            "sandlot_sandboxes", "Sandboxes nodes report, by state.", ["state"], registry=self.registry
        )
        self.pending = Gauge(
            "sandlot_creates_pending", "Creates that wait for a node's answer.", registry=self.registry
        )
        self.nodes = Gauge("sandlot_nodes", "Nodes by state.", ["state"], registry=self.registry)
        self.pool_ready = Gauge(
            "sandlot_pool_ready", "Sandboxes ready to be claimed, by node.", ["node"], registry=self.registry
        )
        self.pool_events = Counter(
            "sandlot_pool_events_total",
            "What came of nodes' ready pools: hits, misses, boots, boot_failures, claim_failures.",
            ["node", "event"],
            registry=self.registry,
        )
        self._pool_counts: dict[tuple[str, str], tuple[str, int]] = {}
        self.reports = Counter(
            "sandlot_node_reports_total", "Node reports by outcome.", ["outcome"], registry=self.registry
        )

    def note_pool(self, node: str, incarnation: str, pool: PoolReport) -> None:
        """Take in what a node says of its ready pool. Its counts begin anew with each start of its agent."""
        self.pool_ready.labels(node).set(sum(each.ready for each in pool.ready))
        for event in POOL_EVENTS:
            count: int = getattr(pool, event)
            known, before = self._pool_counts.get((node, event), (incarnation, 0))
            self.pool_events.labels(node, event).inc(max(0, count - before) if known == incarnation else count)
            self._pool_counts[node, event] = (incarnation, count)

    def render(self) -> bytes:
        """Return the text format."""
        return generate_latest(self.registry)
