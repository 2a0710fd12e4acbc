"""The autoscaler's metrics: one Figures a process, one registry, a row a model.

`loop` writes them, whoever assembles the process exports `registry`. Names and labels come from `core.metric_names` only.
"""

from penstock_core import metric_names
from penstock_core.metric_names import Metric
from penstock_core.slo import Slo
from penstock_core.traffic import Window, attained
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from penstock_autoscaler.decision import Decision
from penstock_autoscaler.starts import PHASES
from penstock_autoscaler.told import PoolThen


class Figures:
    """See the module."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._desired = self._gauge(metric_names.AUTOSCALER_DESIRED)
        self._ready = self._gauge(metric_names.AUTOSCALER_READY)
        self._starting = self._gauge(metric_names.AUTOSCALER_STARTING)
        self._start = self._gauge(metric_names.AUTOSCALER_START)
        self._phases = self._gauge(metric_names.AUTOSCALER_START_PHASE)
        self._fitted = self._gauge(metric_names.AUTOSCALER_FITTED)
        self._valid = self._gauge(metric_names.AUTOSCALER_VALID)
        self._leader = self._gauge(metric_names.AUTOSCALER_LEADER)
        self._decisions = self._counter(metric_names.AUTOSCALER_DECISIONS)
        self._ended = self._counter(metric_names.AUTOSCALER_ENDED)
        self._met = self._counter(metric_names.AUTOSCALER_MET)
        self._failures = self._counter(metric_names.AUTOSCALER_FAILURES)
        seconds = metric_names.AUTOSCALER_SECONDS
        self._seconds = Histogram(seconds.name, seconds.help, seconds.labels, buckets=seconds.buckets, registry=self.registry)

    def decided(self, model: str, decision: Decision, pools: tuple[PoolThen, ...], seconds: float) -> None:
        """One decision, and the pools as it found them."""
        self._decisions.labels(model, decision.reason.value).inc()
        self._valid.labels(model).set(decision.valid)
        self._seconds.labels(model).observe(seconds)
        for pool in pools:
            self._desired.labels(model, pool.name, pool.role).set(decision.desired.get(pool.name, pool.desired))
            self._ready.labels(model, pool.name, pool.role).set(pool.ready)
            self._starting.labels(model, pool.name, pool.role).set(pool.starting)
            self._start.labels(model, pool.name).set(pool.start_s)
            if pool.start is not None:
                for name in PHASES:
                    self._phases.labels(model, pool.name, name.removesuffix("_s")).set(getattr(pool.start, name))
            self._fitted.labels(model, pool.name).set(pool.fit is not None)

    def heard(self, model: str, traffic: Window, slo: Slo) -> None:
        """An interval that was decided on, once; routers may have sampled its requests."""
        fared = attained(traffic.ended, slo)
        self._ended.labels(model).inc(traffic.endings)
        self._met.labels(model).inc(traffic.endings * (fared.goodput_ratio or 0.0))

    def failed(self, model: str, step: str) -> None:
        self._failures.labels(model, step).inc()

    def leads(self, model: str, leads: bool) -> None:
        self._leader.labels(model).set(leads)

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name.removesuffix("_total"), metric.help, metric.labels, registry=self.registry)
