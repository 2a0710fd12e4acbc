"""The requests that a replay at another size is made of: the latest arrivals, each with an answer's length and hits, at the rate expected.

Pure; `demand` makes it of Windows, a WhatIf replays it. A request that has not ended yet gets the answer of one that did and had a prompt
about as long.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.traffic import Ended, Window, joined

KIND_SPANS_S = (15.0, 30.0, 60.0, 120.0)
KIND_REQUESTS = 30


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """N requests in order of arrival; arrays of shape (N,)."""

    arrival_s: NDArray[np.float64]
    """From 0 on; as `sample` gives it, of traffic at one request a second."""
    prompt_tokens: NDArray[np.int64]
    hit_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    """At least 1."""

    @property
    def requests(self) -> int:
        return len(self.arrival_s)

    @property
    def length_s(self) -> float:
        return float(self.arrival_s[-1]) if len(self.arrival_s) else 0.0

    def at_rate(self, rate: float) -> "Sample":
        """The same requests, at `rate` of them a second instead of one."""
        return msgspec.structs.replace(self, arrival_s=self.arrival_s / rate)


def sample(windows: Sequence[Window], most: int, pieces: Sequence[tuple[float, float]] = ()) -> Sample | None:
    """The latest `most` arrivals of contiguous windows, at one request a second; None where nothing arrived, or nothing was answered.

    `pieces`: (since_s, rate) of the times in which the rate was another, as `trend` found them: each is stretched by its own rate, so that
    what came before a step and after it make one stretch of even traffic.
    """
    if not windows:
        return None
    whole = joined(windows)
    answered = _answered(whole.ended)
    arrivals = len(whole.arrival_s)
    if not arrivals or not len(answered.arrival_s):
        return None
    since = max(0, arrivals - most, _new_kind(whole.prompt_tokens, whole.arrival_s))
    prompts, arrived = whole.prompt_tokens[since:], whole.arrival_s[since:]
    like, own = _alike(prompts, arrived, answered)
    prompts = np.where(own, answered.prompt_tokens[like], prompts)
    share = answered.hit_tokens[like] / np.maximum(1, answered.prompt_tokens[like])
    return Sample(
        arrival_s=_evened(arrived, whole, pieces),
        prompt_tokens=prompts,
        hit_tokens=np.minimum(prompts, share * prompts).astype(np.int64),
        output_tokens=np.maximum(1, answered.output_tokens[like]),
    )


def _new_kind(prompts: NDArray[np.int64], arrived: NDArray[np.float64]) -> int:
    """Index of the first arrival of the present kind of traffic: 0, but where prompts lately became much longer or shorter.

    Logarithms, because lengths have long tails; six standard errors and a factor of 1.6, because a sample is cut short by it.
    """
    logs = np.log(np.maximum(1, prompts))
    for span_s in KIND_SPANS_S:
        first = int(np.searchsorted(arrived, arrived[-1] - span_s))
        before, after = logs[:first], logs[first:]
        if min(len(before), len(after)) < KIND_REQUESTS:
            continue
        error = float(np.sqrt(before.var() / len(before) + after.var() / len(after)))
        if abs(float(after.mean() - before.mean())) > max(0.5, 6.0 * error):
            return first
    return 0


def _evened(arrived: NDArray[np.float64], whole: Window, pieces: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Moments in a time in which one request comes a second, from 0 on."""
    kept = len(whole.arrival_s) / max(1, whole.arrivals)  # what the publishers sampled
    if not pieces:
        pieces = ((whole.since_s, whole.arrivals / max(1e-9, whole.length_s)),)
    since_s = np.array([min(pieces[0][0], whole.since_s), *(at for at, _ in pieces[1:]), max(whole.until_s, pieces[-1][0] + 1e-9)])
    rates = np.array([rate for _, rate in pieces])
    passed = np.concatenate([[0.0], np.cumsum(np.diff(since_s) * rates)])
    evened: NDArray[np.float64] = np.interp(arrived, since_s, passed) * kept
    evened -= evened[0]
    return evened


def _answered(ended: Ended) -> Ended:
    known = ended.ok & (ended.output_tokens > 0)
    return Ended(**{name: getattr(ended, name)[known] for name in Ended.__struct_fields__})


def _alike(prompts: NDArray[np.int64], arrived: NDArray[np.float64], answered: Ended) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(index of an answered request for each arrival, whether it is its own), shape (N,); else it is one with about that prompt.

    What routers guess of a prompt's length may differ from what engines count, so a request is known by its moment.
    """
    order = np.lexsort((answered.arrival_s, answered.prompt_tokens))
    ranks = np.searchsorted(answered.prompt_tokens[order], prompts)
    spread = np.arange(len(prompts)) * 7 % 11 - 5  # several that look for the same length find several answers
    like = order[np.clip(ranks + spread, 0, len(order) - 1)]
    own = _own(prompts, arrived, answered)
    return np.where(own >= 0, own, like), own >= 0


def _own(prompts: NDArray[np.int64], arrived: NDArray[np.float64], answered: Ended) -> NDArray[np.int64]:
    """Index of each arrival's own end, −1: it has none yet. Of several that came in one instant, the one with the nearest prompt."""
    ends: dict[float, list[int]] = {}
    for index, at in enumerate(answered.arrival_s.tolist()):
        ends.setdefault(at, []).append(index)
    own = np.full(len(prompts), -1)
    for number, (at, prompt) in enumerate(zip(arrived.tolist(), prompts.tolist(), strict=True)):
        left = ends.get(at)
        if left:
            own[number] = min(left, key=lambda one: abs(int(answered.prompt_tokens[one]) - prompt))
            left.remove(int(own[number]))
    return own
