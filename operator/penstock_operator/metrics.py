"""The operator's own figures, under the names of `core.metric_names`, in a registry of their own.

One object for the process; `process` serves its text beside the probes.
"""

from collections.abc import Callable
from typing import Protocol

from penstock_core import metric_names
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

ENDS = {"Drained": "drained", "DrainDeadline": "deadline", "NotServing": "not_serving", "Ended": "ended", "GangLeaves": "gang"}


class _Removal(Protocol):
    @property
    def why(self) -> str: ...


class OperatorMetrics:
    """Counters and gauges of one operator process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._watched: dict[str, Gauge] = {}
        row = metric_names.OPERATOR_RECONCILE
        self.reconcile = Histogram(row.name, row.help, row.labels, buckets=row.buckets, registry=self.registry)
        self.writes = self._counter(metric_names.OPERATOR_WRITES)
        self.refused = self._counter(metric_names.OPERATOR_REFUSED)
        self._retired = self._counter(metric_names.OPERATOR_RETIRED)
        self.leader = self._gauge(metric_names.OPERATOR_LEADER)
        self.loop_lag = self._gauge(metric_names.OPERATOR_LOOP_LAG)

    def retired(self, removal: _Removal) -> None:
        """A Pod was deleted, and why."""
        self._retired.labels(ENDS.get(removal.why, "other")).inc()

    def watch(self, row: metric_names.Metric, value: Callable[[], float], *labels: str) -> None:
        """Export a gauge that is asked for at each scrape."""
        if row.name not in self._watched:
            self._watched[row.name] = self._gauge(row)
        gauge = self._watched[row.name]
        (gauge.labels(*labels) if labels else gauge).set_function(value)

    def text(self) -> bytes:
        """Everything, in Prometheus text form."""
        return generate_latest(self.registry)

    def _counter(self, row: metric_names.Metric) -> Counter:
        return Counter(row.name.removesuffix("_total"), row.help, row.labels, registry=self.registry)

    def _gauge(self, row: metric_names.Metric) -> Gauge:
        return Gauge(row.name, row.help, row.labels, registry=self.registry)
