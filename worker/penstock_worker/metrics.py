"""A worker's own figures, under the names of `core.metric_names`, in a registry of their own.

`host` counts here; a scrape joins this text with the engine's (vLLM's names, and what only the engine knows of its KV).
"""

from collections.abc import Callable, Iterator

from penstock_core import metric_names
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from penstock_worker.engine import Handover
from penstock_worker.kv_agreement import Agreement

REFUSALS = ("full", "draining", "epoch", "kv")


class WorkerMetrics:
    """Counters of one worker."""

    def __init__(self, restarts: int) -> None:
        self.registry = CollectorRegistry()
        self._lag: Gauge | None = None
        self.refused = self._counter(metric_names.WORKER_REFUSED)
        for reason in REFUSALS:
            self.refused.labels(reason)
        self.aborted = self._counter(metric_names.WORKER_ABORTED)
        self._counter(metric_names.WORKER_EPOCHS).inc(restarts)

    def watch_handover(self, handover: Callable[[], Handover]) -> None:
        """Export what the engine says of KV handed over; asked at each scrape."""
        self.registry.register(HandoverCollector(handover))

    def watch_agreement(self, agreement: Agreement) -> None:
        """Export how far the followed counts agree with the engine's; asked at each scrape."""
        self.registry.register(AgreementCollector(agreement))

    def watch_publish_lag(self, lag_s: Callable[[], float]) -> None:
        """Export how far the index is behind; asked at each scrape. The last one holds: a worker that changes its role registers anew."""
        if self._lag is None:
            row = metric_names.WORKER_PUBLISH_LAG
            self._lag = Gauge(row.name, row.help, registry=self.registry)
        self._lag.set_function(lag_s)

    def text(self, engine_text: str) -> bytes:
        """Everything, in Prometheus text form."""
        return generate_latest(self.registry) + engine_text.encode()

    def _counter(self, row: metric_names.Metric) -> Counter:
        return Counter(row.name.removesuffix("_total"), row.help, row.labels, registry=self.registry)


class HandoverCollector(Collector):
    """The engine's own counts of KV handed over, read at each scrape."""

    def __init__(self, handover: Callable[[], Handover]) -> None:
        self._handover = handover

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        now = self._handover()
        row = metric_names.WORKER_KV_PENDING
        yield GaugeMetricFamily(row.name, row.help, now.unclaimed_tokens)
        row = metric_names.WORKER_KV_EXPIRED
        yield CounterMetricFamily(row.name.removesuffix("_total"), row.help, now.expired)
        row = metric_names.WORKER_KV_BYTES
        moved = CounterMetricFamily(row.name.removesuffix("_total"), row.help, labels=row.labels)
        moved.add_metric(["pulled"], now.pulled_bytes)
        moved.add_metric(["served"], now.served_bytes)
        yield moved


class AgreementCollector(Collector):
    """The follower's comparisons, read at each scrape."""

    def __init__(self, agreement: Agreement) -> None:
        self._agreement = agreement

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        row = metric_names.WORKER_COMPARED
        yield CounterMetricFamily(row.name.removesuffix("_total"), row.help, self._agreement.compared)
        row = metric_names.WORKER_DISAGREED
        differ = CounterMetricFamily(row.name.removesuffix("_total"), row.help, labels=row.labels)
        differ.add_metric(["tokens"], self._agreement.token_disagreements)
        differ.add_metric(["hits"], self._agreement.hit_disagreements)
        yield differ
        row = metric_names.WORKER_EXACT
        yield GaugeMetricFamily(row.name, row.help, float(self._agreement.exact))
