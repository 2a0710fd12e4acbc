"""The router's own figures, kept as plain Python numbers and given to Prometheus when it asks.

One `observe` of prometheus-client costs more than the rest of a chunk's path, so the hot path adds to lists here and
`RouterCollector` turns them into families on a scrape. Names, labels and buckets come from `core.metric_names` only.
Single-threaded: everything is written and read on the event loop.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from penstock_core import metric_names
from penstock_core.errors import Outcome
from penstock_core.metric_names import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from penstock_router.fitted import ClassState
from penstock_router.length_classes import LengthClasses

UNKNOWN_MODEL = "unknown"
"""Label of requests that named no model that is served: a client's text never becomes a label."""

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Histogram:
    """Counts per bucket; the last one is for values over every bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, metric: Metric) -> None:
        self.bounds = metric.buckets
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_times(self, value: float, times: int) -> None:
        """The same value so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """(bound, observations up to it) pairs, ending with +Inf."""
        pairs, seen = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            pairs.append((bound, float(seen)))
        return pairs


class ModelFigures:
    """What is counted per model."""

    __slots__ = ("hit_error", "hit_ratio", "itl", "outcomes", "queue", "ttft", "ttft_error")

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.ttft = Histogram(metric_names.TTFT)
        self.itl = Histogram(metric_names.ITL)
        self.queue = Histogram(metric_names.QUEUE)
        self.hit_ratio = Histogram(metric_names.HIT_RATIO)
        self.ttft_error = Histogram(metric_names.TTFT_ERROR)
        self.hit_error = Histogram(metric_names.HIT_ERROR)


class ModelGauges(Protocol):
    """What a model's endpoints and mirror say when asked; given by `endpoints`."""

    name: str

    def live_by_role(self) -> dict[str, int]: ...

    @property
    def waiting(self) -> int:
        """Requests that wait for room or for a first replica."""

    held: int
    """Of them, for a first replica."""
    wakeable: bool

    @property
    def chunks(self) -> int: ...

    @property
    def lag_s(self) -> float | None:
        """None where no index is followed."""

    @property
    def profiles(self) -> Sequence[ClassState]:
        """What is fitted, per class of endpoints."""

    @property
    def lengths(self) -> LengthClasses: ...

    @property
    def reloads(self) -> dict[str, int]:
        """Reloads by reason."""


class Figures:
    """All figures of one router process."""

    def __init__(self) -> None:
        self.models: dict[str, ModelFigures] = {}
        self.decision = Histogram(metric_names.DECISION)
        self.retries: dict[str, int] = {}
        self.prefill_fallbacks: dict[str, int] = {}
        self.active = 0
        self.conflicts: Callable[[], int] = lambda: 0
        self.gauges: Callable[[], Iterable[ModelGauges]] = tuple

    def model(self, name: str) -> ModelFigures:
        """The figures of one served model; the caller has checked that it is one, or passes UNKNOWN_MODEL."""
        figures = self.models.get(name)
        if figures is None:
            figures = self.models[name] = ModelFigures()
        return figures

    def retried(self, reason: str) -> None:
        self.retries[reason] = self.retries.get(reason, 0) + 1

    def fell_back(self, reason: str) -> None:
        self.prefill_fallbacks[reason] = self.prefill_fallbacks.get(reason, 0) + 1


def _counter(metric: Metric, rows: Iterable[tuple[tuple[str, ...], float]]) -> CounterMetricFamily:
    family = CounterMetricFamily(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
    for labels, value in rows:
        family.add_metric(labels, value)
    return family


def _gauge(metric: Metric, rows: Iterable[tuple[tuple[str, ...], float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in rows:
        family.add_metric(labels, value)
    return family


def _histogram(metric: Metric, rows: Iterable[tuple[tuple[str, ...], Histogram]]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, histogram in rows:
        family.add_metric(labels, histogram.cumulative(), histogram.total)
    return family


_PER_MODEL = (
    (metric_names.TTFT, "ttft"),
    (metric_names.ITL, "itl"),
    (metric_names.QUEUE, "queue"),
    (metric_names.HIT_RATIO, "hit_ratio"),
    (metric_names.TTFT_ERROR, "ttft_error"),
    (metric_names.HIT_ERROR, "hit_error"),
)


class RouterCollector(Collector):
    """Gives `Figures` to a prometheus-client registry."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Family]:
        figures = self._figures
        models = list(figures.models.items())
        yield _counter(
            metric_names.REQUESTS,
            (((name, outcome.value), n) for name, each in models for outcome, n in each.outcomes.items() if n),
        )
        for metric, field in _PER_MODEL:
            yield _histogram(metric, (((name,), getattr(each, field)) for name, each in models))
        yield _histogram(metric_names.DECISION, [((), figures.decision)])
        yield _counter(metric_names.CONFLICTS, [((), figures.conflicts())])
        yield _counter(metric_names.RETRIES, (((reason,), n) for reason, n in figures.retries.items()))
        yield _counter(metric_names.PREFILL_FALLBACK, (((reason,), n) for reason, n in figures.prefill_fallbacks.items()))
        yield _gauge(metric_names.ACTIVE, [((), figures.active)])
        yield from self._gauges(list(figures.gauges()))

    def _gauges(self, gauges: list[ModelGauges]) -> Iterator[Family]:
        yield _gauge(metric_names.ENDPOINTS, (((each.name, role), n) for each in gauges for role, n in each.live_by_role().items()))
        yield _gauge(metric_names.QUEUED, (((each.name,), each.waiting) for each in gauges))
        yield _gauge(metric_names.HELD, (((each.name,), each.held) for each in gauges))
        yield _gauge(metric_names.WAKEABLE, (((each.name,), float(each.wakeable)) for each in gauges))
        yield _gauge(metric_names.INDEX_CHUNKS, (((each.name,), each.chunks) for each in gauges))
        yield _gauge(metric_names.INDEX_LAG, (((each.name,), each.lag_s) for each in gauges if each.lag_s is not None))
        yield from _learned(gauges)
        reloads: dict[str, int] = {}
        for each in gauges:
            for reason, n in each.reloads.items():
                reloads[reason] = reloads.get(reason, 0) + n
        yield _counter(metric_names.INDEX_RELOADS, (((reason,), n) for reason, n in reloads.items()))


def _learned(gauges: list[ModelGauges]) -> Iterator[Family]:
    fits = {
        (each.name, one.pool, one.profile, phase): fit
        for each in gauges
        for one in each.profiles
        for phase, fit in (("prefill", one.prefill), ("decode", one.decode))
    }
    yield _gauge(metric_names.FITTED, ((labels, float(fit.in_force)) for labels, fit in fits.items()))
    yield _gauge(metric_names.FITTED_SCALE, ((labels, fit.scale) for labels, fit in fits.items()))
    yield _gauge(
        metric_names.FITTED_INTERVAL, ((labels, fit.interval_ratio) for labels, fit in fits.items() if fit.interval_ratio is not None)
    )
    yield _gauge(metric_names.LENGTH_CLASSES, (((each.name,), each.lengths.followed) for each in gauges))
    yield _counter(metric_names.LENGTHS_FORGOTTEN, (((each.name,), each.lengths.model.forgotten) for each in gauges))


def registry_of(figures: Figures) -> CollectorRegistry:
    """A registry that exports `figures` and nothing else."""
    registry = CollectorRegistry()
    registry.register(RouterCollector(figures))
    return registry
