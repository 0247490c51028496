"""Counters and times of the control plane, for Prometheus. No sandbox or project ids: they would never end."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


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
        self.reports = Counter(
            "sandlot_node_reports_total", "Node reports by outcome.", ["outcome"], registry=self.registry
        )

    def render(self) -> bytes:
        """Return the text format."""
        return generate_latest(self.registry)
