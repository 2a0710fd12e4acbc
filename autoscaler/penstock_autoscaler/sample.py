"""The requests that a replay at another size is made of: the latest arrivals, each with an answer's length and hits, at the rate expected.

Pure; `demand` makes it of Windows, a WhatIf replays it. A request that has not ended yet gets the answer of one that did and had a prompt
about as long.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.traffic import Ended, Window, joined


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """N requests in order of arrival; arrays of shape (N,)."""

    arrival_s: NDArray[np.float64]
    """From 0 on."""
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
        """The same requests, `rate` of them a second on average."""
        length_s = self.requests / rate
        return msgspec.structs.replace(self, arrival_s=self.arrival_s * (length_s / max(1e-9, self.length_s)))


def sample(windows: Sequence[Window], most: int) -> Sample | None:
    """The latest `most` arrivals of contiguous windows; None where nothing arrived, or nothing has been answered."""
    if not windows:
        return None
    whole = joined(windows)
    answered = _answered(whole.ended)
    arrivals = len(whole.arrival_s)
    if not arrivals or not len(answered.arrival_s):
        return None
    since = max(0, arrivals - most)
    prompts, arrived = whole.prompt_tokens[since:], whole.arrival_s[since:]
    like, own = _alike(prompts, arrived, answered)
    prompts = np.where(own, answered.prompt_tokens[like], prompts)
    share = answered.hit_tokens[like] / np.maximum(1, answered.prompt_tokens[like])
    return Sample(
        arrival_s=arrived - (arrived[0] if since else whole.since_s),
        prompt_tokens=prompts,
        hit_tokens=np.minimum(prompts, share * prompts).astype(np.int64),
        output_tokens=np.maximum(1, answered.output_tokens[like]),
    )


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
