"""A worker's own figures, under the names of `core.metric_names`, in a registry of their own.

`host` counts here; a scrape joins this text with the engine's (vLLM's names, and what only the engine knows of its KV).
"""

import re
from collections.abc import Callable

from penstock_core import metric_names
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

REFUSALS = ("full", "draining", "epoch", "kv")
_UNCLAIMED_RE = re.compile(rf"^{metric_names.WORKER_KV_PENDING.name}(?:\{{[^}}]*\}})? (\S+)$", re.MULTILINE)


class WorkerMetrics:
    """Counters of one worker."""

    def __init__(self, restarts: int) -> None:
        self.registry = CollectorRegistry()
        self.refused = self._counter(metric_names.WORKER_REFUSED)
        for reason in REFUSALS:
            self.refused.labels(reason)
        self.aborted = self._counter(metric_names.WORKER_ABORTED)
        self._counter(metric_names.WORKER_EPOCHS).inc(restarts)

    def watch_publish_lag(self, lag_s: Callable[[], float]) -> None:
        """Export how far the index is behind; asked at each scrape."""
        row = metric_names.WORKER_PUBLISH_LAG
        Gauge(row.name, row.help, registry=self.registry).set_function(lag_s)

    def text(self, engine_text: str) -> bytes:
        """Everything, in Prometheus text form."""
        return generate_latest(self.registry) + engine_text.encode()

    def _counter(self, row: metric_names.Metric) -> Counter:
        return Counter(row.name.removesuffix("_total"), row.help, row.labels, registry=self.registry)


def unclaimed_tokens(engine_text: str) -> float:
    """Tokens of finished prefills that a decode worker may still fetch, as the engine's own metrics say; 0 where they are silent."""
    return sum(float(found) for found in _UNCLAIMED_RE.findall(engine_text))
