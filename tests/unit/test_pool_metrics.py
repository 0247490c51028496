"""What nodes say of their ready pools, as Prometheus reads it."""

from api.services.metrics import Metrics
from sandboxd.contract.messages import PoolReport, ReadySandboxes

READY = ReadySandboxes(image_id="img" + "a" * 20, memory_mib=1024, processors=2, disk_mib=8192, ready=3)


def test_counts_go_on_over_restarts_of_an_agent() -> None:
    metrics = Metrics()
    metrics.note_pool("nod", "one", PoolReport(ready=[READY], hits=5, misses=1))
    metrics.note_pool("nod", "one", PoolReport(ready=[READY], hits=7, misses=1))
    metrics.note_pool("nod", "two", PoolReport(hits=2))
    text = metrics.render().decode()
    assert 'sandlot_pool_events_total{event="hits",node="nod"} 9.0' in text
    assert 'sandlot_pool_events_total{event="misses",node="nod"} 1.0' in text
    assert 'sandlot_pool_ready{node="nod"} 0.0' in text
