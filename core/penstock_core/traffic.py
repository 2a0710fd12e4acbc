"""What a model's routers saw of its requests in an interval: when they came, how large they were, how they fared.

Routers measure Windows and publish them, the autoscaler adds up those of all routers and sizes pools by them; the simulator
makes the same ones in virtual time. Times are seconds of one clock that all of a fleet share (Redis' own, or a replay's).
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock_core.errors import Outcome
from penstock_core.profile_fit import PoolFit, best_fits
from penstock_core.slo import Attainment, Slo

SHED = frozenset({Outcome.SHED, Outcome.QUEUE_FULL, Outcome.QUEUE_TIMEOUT})
"""Never reached an engine, for want of room. What is over a tenant's quota lacks no room and is no demand."""
FAILED = frozenset({Outcome.NO_ENDPOINT, Outcome.UPSTREAM_FAILED, Outcome.DEADLINE_EXCEEDED})
"""Penstock's or an engine's fault. What a client got wrong, or left, is neither."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that ended in an interval, in the order they did; arrays of shape (E,)."""

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    hit_tokens: NDArray[np.int64]
    """Prompt tokens that were found in a cache."""
    output_tokens: NDArray[np.int64]
    ttft_s: NDArray[np.float64]
    """NaN where no token came."""
    tpot_s: NDArray[np.float64]
    """NaN for answers of one token and for those cut short."""
    ok: NDArray[np.bool_]

    @staticmethod
    def of(windows: Sequence["Ended"]) -> "Ended":
        """All of them in one, in the order given."""
        return Ended(**{name: np.concatenate([_EMPTY[name], *(getattr(one, name) for one in windows)]) for name in Ended.__struct_fields__})


_EMPTY: dict[str, NDArray[np.generic]] = {
    "arrival_s": np.zeros(0, np.float64),
    "prompt_tokens": np.zeros(0, np.int64),
    "hit_tokens": np.zeros(0, np.int64),
    "output_tokens": np.zeros(0, np.int64),
    "ttft_s": np.zeros(0, np.float64),
    "tpot_s": np.zeros(0, np.float64),
    "ok": np.zeros(0, np.bool_),
}


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """One interval [since_s, until_s) of one model's traffic; arrays of shape (A,) hold the arrivals in order.

    A publisher may keep only an even sample of many requests: `arrivals` and `endings` say how many there were.
    """

    since_s: float
    until_s: float
    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    ended: Ended
    arrivals: int
    endings: int
    """Requests that ended in any way, the shed and failed ones among them."""
    shed: int = 0
    """Of SHED outcome."""
    failed: int = 0
    """Of FAILED outcome."""
    queue_s: float = 0.0
    """Seconds that the requests placed in the interval had waited in routers' lines, in all."""
    waiting: int = 0
    """In routers' lines at the end of the interval."""
    fits: tuple[PoolFit, ...] = ()
    """Pools whose engines are measured well enough to say how fast they compute, one each."""

    @property
    def length_s(self) -> float:
        return self.until_s - self.since_s


def attained(ended: Ended, slo: Slo) -> Attainment:
    """How many met their targets; a first token whose time is not known counts as in time."""
    ttft_met, itl_met = ended.ok & ~(ended.ttft_s > slo.ttft_s), ended.ok & ~(ended.tpot_s > slo.itl_s)
    return Attainment(len(ended.ok), int(ttft_met.sum()), int(itl_met.sum()), int((ttft_met & itl_met).sum()))


def joined(windows: Sequence[Window]) -> Window:
    """Windows of several routers, or of successive intervals, as one; what the routers sampled stays as it is.

    Waiting requests and fits count from each router's latest interval only by the caller's choice of windows: they are taken from those
    that end last. Raises ValueError for none.
    """
    if not windows:
        raise ValueError("windows is empty; allowed: 1 or more")
    until_s = max(one.until_s for one in windows)
    arrival_s = np.concatenate([one.arrival_s for one in windows])
    order = np.argsort(arrival_s, kind="stable")
    return Window(
        since_s=min(one.since_s for one in windows),
        until_s=until_s,
        arrival_s=arrival_s[order],
        prompt_tokens=np.concatenate([one.prompt_tokens for one in windows])[order],
        ended=Ended.of([one.ended for one in windows]),
        arrivals=sum(one.arrivals for one in windows),
        endings=sum(one.endings for one in windows),
        shed=sum(one.shed for one in windows),
        failed=sum(one.failed for one in windows),
        queue_s=sum(one.queue_s for one in windows),
        waiting=sum(one.waiting for one in windows if one.until_s == until_s),
        fits=best_fits(fit for one in windows if one.until_s == until_s for fit in one.fits),
    )


def thinned(window: Window, most: int) -> Window:
    """At most so many of its arrivals and of its endings one by one, at even steps; the counts stay those of all."""
    ended = window.ended
    came, went = _even(len(window.arrival_s), most), _even(len(ended.ok), most)
    return msgspec.structs.replace(
        window,
        arrival_s=window.arrival_s[came],
        prompt_tokens=window.prompt_tokens[came],
        ended=Ended(**{name: getattr(ended, name)[went] for name in Ended.__struct_fields__}),
    )


def _even(there: int, most: int) -> slice | NDArray[np.int64]:
    """Which of `there` rows to take: all, or `most` of them at even steps."""
    return slice(None) if there <= most else np.arange(most) * there // most
