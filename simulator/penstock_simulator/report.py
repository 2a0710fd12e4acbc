"""What a replay was worth: latencies, goodput, hits and cost, as values, JSON and a table.

`penstock simulate` and the benchmarks call `summarise`. TTFT is one sample a request, ITL one a gap, TPOT one a request of
two tokens or more; goodput is the share of all requests that met both targets, shed and failed ones being misses.
"""

from collections import Counter

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.slo import Slo
from rich.table import Table

from penstock_simulator import fleet as fl
from penstock_simulator.setup import Replay


class Spread(msgspec.Struct, frozen=True):
    """Of one quantity, in seconds; None where there was no sample."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one replay."""

    workload: str
    policy: str
    workers: str
    """`8` or `5P3D`."""
    seed: int
    slo: Slo
    requests: int
    rate: float
    """Requests a second, over the time in which they arrived."""
    goodput_ratio: float
    ttft_met_ratio: float
    itl_met_ratio: float
    ttft_s: Spread
    itl_s: Spread
    tpot_s: Spread
    hit_ratio: float
    """Prompt tokens found in a cache ÷ prompt tokens, over all admissions to a batch."""
    worker_s: float
    """Seconds of all workers that were paid for."""
    busy_ratio: float
    """Of them, seconds in a pass."""
    span_s: float
    outcomes: dict[str, int]
    preemptions: int
    evicted_blocks: int
    passes: int


def summarise(replay: Replay, slo: Slo | None = None) -> Summary:
    """The figures under `slo` (None: the targets that the replay was placed by)."""
    slo = slo or replay.setup.slo
    ttft, tpot = request_ttft_s(replay), request_tpot_s(replay)
    done = np.array([one == "ok" for one in replay.outcomes], bool)
    ttft_met = done & (ttft <= slo.ttft_s)
    itl_met = done & (np.isnan(tpot) | (tpot <= slo.itl_s))
    counters = replay.counters.sum(axis=0)
    return Summary(
        workload=replay.workload.name,
        policy=replay.setup.policy,
        workers=workers_word(replay),
        seed=replay.setup.seed,
        slo=slo,
        requests=len(ttft),
        rate=len(ttft) / max(1e-9, float(np.nanmax(replay.arrival_s))),
        goodput_ratio=_mean(ttft_met & itl_met),
        ttft_met_ratio=_mean(ttft_met),
        itl_met_ratio=_mean(itl_met),
        ttft_s=_spread(ttft),
        itl_s=_gap_spread(replay, done),
        tpot_s=_spread(tpot[done]),
        hit_ratio=float(counters[fl.HIT_TOKENS] / max(1, counters[fl.PROMPT_TOKENS])),
        worker_s=float(replay.worker_s.sum()),
        busy_ratio=float(replay.busy_s.sum() / max(1e-9, replay.worker_s.sum())),
        span_s=replay.span_s,
        outcomes=dict(Counter(one.value for one in replay.outcomes)),
        preemptions=int(counters[fl.PREEMPTED]),
        evicted_blocks=int(counters[fl.EVICTIONS]),
        passes=int(counters[fl.PASSES]),
    )


def request_ttft_s(replay: Replay) -> NDArray[np.float64]:
    """Arrival to first token, shape (R,); NaN where none came."""
    return replay.first_s - replay.arrival_s


def request_tpot_s(replay: Replay) -> NDArray[np.float64]:
    """(last − first token) ÷ (tokens − 1), shape (R,); NaN for answers of one token."""
    gaps = replay.workload.output_tokens - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gaps > 0, (replay.last_s - replay.first_s) / gaps, np.nan)


def workers_word(replay: Replay) -> str:
    """The fleet in one word."""
    roles = Counter(spec.role.value for spec in replay.setup.workers)
    divided = f"{roles['prefill']}P{roles['decode']}D" if roles["prefill"] or roles["decode"] else ""
    return "+".join(word for word in (str(roles["both"]) if roles["both"] else "", divided) if word)


def table(summaries: list[Summary], fleet: str = "workers") -> Table:
    """One row a replay; times in milliseconds. `fleet`: heading of the column of fleets."""
    shown = Table(title=f"{summaries[0].workload}: {summaries[0].requests} requests" if summaries else None)
    for name in ("policy", fleet):
        shown.add_column(name)
    for name in ("req/s", "goodput", "TTFT mean/p50/p90/p99 ms", "TPOT mean/p99 ms", "ITL p50/p99 ms", "hits", "worker-h", "not served"):
        shown.add_column(name, justify="right")
    for one in summaries:
        shown.add_row(
            one.policy,
            one.workers,
            f"{one.rate:.3g}",
            f"{one.goodput_ratio:.2%}",
            "/".join(_ms(value) for value in (one.ttft_s.mean, one.ttft_s.p50, one.ttft_s.p90, one.ttft_s.p99)),
            f"{_ms(one.tpot_s.mean, 1)}/{_ms(one.tpot_s.p99, 1)}",
            f"{_ms(one.itl_s.p50, 1)}/{_ms(one.itl_s.p99, 1)}",
            f"{one.hit_ratio:.1%}",
            f"{one.worker_s / 3600:.2f}",
            str(one.requests - one.outcomes.get("ok", 0)),
        )
    return shown


def _ms(seconds: float | None, digits: int = 0) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.{digits}f}"


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _spread(samples: NDArray[np.float64]) -> Spread:
    known = samples[~np.isnan(samples)]
    if not len(known):
        return Spread(None, None, None, None)
    p50, p90, p99 = np.percentile(known, (50, 90, 99))
    return Spread(float(known.mean()), float(p50), float(p90), float(p99))


def _gap_spread(replay: Replay, done: NDArray[np.bool_]) -> Spread:
    """Mean from the finished requests, percentiles from the bins (0.4 % wide)."""
    count = int(replay.gaps.sum())
    if not count:
        return Spread(None, None, None, None)
    below = np.cumsum(replay.gaps)
    middles = fl.GAP_LEAST_S * np.exp((np.arange(fl.GAP_BINS) + 0.5) / fl.GAP_BINS_PER_E)
    p50, p90, p99 = (float(middles[np.searchsorted(below, share * count)]) for share in (0.5, 0.9, 0.99))
    gaps = int((replay.workload.output_tokens - 1)[done].sum())
    mean = float((replay.last_s - replay.first_s)[done].sum() / gaps) if gaps else None
    return Spread(mean, p50, p90, p99)
