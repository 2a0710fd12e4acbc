"""What the autoscaler remembers of one model from decision to decision, and its form as bytes.

`Scaler` adds to it; the loop stores the bytes so that a restarted autoscaler goes on where the last one was. Bounded by the settings.
"""

from collections.abc import Sequence, Set
from itertools import accumulate
from typing import Any, get_args

import msgspec
import numpy as np
from penstock_core.slo import Attainment
from penstock_core.traffic import Window, thinned

from penstock_autoscaler.forecast import Season
from penstock_autoscaler.settings import ScalerSettings
from penstock_autoscaler.trend import Count

MOST_WINDOWS = 512
MOST_REQUESTS = 40_000
"""Arrivals, and endings, kept one by one: what the store takes, and many times what a sample needs."""
MOST_COUNTS = 80


class Wanted(msgspec.Struct, frozen=True):
    """What the traffic asked for at one moment, by pool."""

    at_s: float
    replicas: dict[str, int]


class Tried(msgspec.Struct, frozen=True):
    """What a replay said."""

    at_s: float
    sizes: dict[str, int]
    rate: float
    prompt_tokens: float
    """Mean of the sample."""
    attainment: Attainment


class Fared(msgspec.Struct, frozen=True):
    """How the requests of an interval fared."""

    until_s: float
    attainment: Attainment


class Memory(msgspec.Struct, kw_only=True):
    """Of one model; changed by `Scaler.step` and what it calls, by nobody else."""

    windows: list[Window] = []
    """Traffic of the latest `sample_s`, or of as much of it as MOST_REQUESTS are, oldest first."""
    counts: list[Count] = []
    """Arrivals of the latest `trend_s`, oldest first."""
    season: Season = msgspec.field(default_factory=Season)
    wanted: list[Wanted] = []
    """Since the stable window began, oldest first."""
    tried: list[Tried] = []
    corrections: dict[str, float] = {}
    """By pool: what the fluid bound is multiplied with."""
    fitted: list[str] = []
    """Pools whose profile was measured when the corrections were learned."""
    jumped_s: float | None = None
    """When the rate jumped last, or when traffic was seen first; None: no traffic yet."""
    fared: list[Fared] = []
    """Of the latest minute or so, oldest first."""
    counted: float = 0.0
    """Requests that ended lately, older ones for less."""
    missed: float = 0.0
    """Of them, those that missed a target."""

    def add(self, traffic: Window, settings: ScalerSettings) -> None:
        """Keep the newest interval, and forget what is too old. An interval that was lost begins the counts anew."""
        if self.counts and abs(self.counts[-1].until_s - traffic.since_s) > 0.5 * settings.period_s:
            self.windows, self.counts, self.wanted = [], [], []
        since_s = traffic.until_s - settings.sample_s
        windows = [
            *(one for one in self.windows if one.until_s > since_s),
            thinned(msgspec.structs.replace(traffic, fits=()), MOST_REQUESTS),
        ]
        self.windows = windows[-_most(windows) :]
        counts = [one for one in self.counts if one.until_s > traffic.until_s - settings.trend_s]
        self.counts = [*counts, Count(traffic.until_s, traffic.length_s, traffic.arrivals)][-MOST_COUNTS:]
        self.season.learn(traffic.until_s, traffic.length_s, traffic.arrivals)

    def trust(self, fitted: Set[str]) -> None:
        """Pools whose profile is measured now: what was learned of another profile is forgotten."""
        for name in fitted ^ set(self.fitted):
            self.corrections.pop(name, None)
        self.fitted = sorted(fitted)


def _most(windows: Sequence[Window]) -> int:
    """How many of the latest are kept: within MOST_WINDOWS and MOST_REQUESTS, at least one."""
    rows = accumulate(max(len(one.arrival_s), len(one.ended.ok)) for one in reversed(windows))
    return min(MOST_WINDOWS, sum(so_far <= MOST_REQUESTS for so_far in rows))


def encode(memory: Memory) -> bytes:
    """As MessagePack."""
    return msgspec.msgpack.encode(memory, enc_hook=_as_bytes)


def decode(kept: bytes) -> Memory:
    """What `encode` made. Raises msgspec.DecodeError for anything else."""
    return msgspec.msgpack.decode(kept, type=Memory, dec_hook=_as_array)


def _as_bytes(value: object) -> bytes:
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"{type(value)} has no form as MessagePack")
    return value.tobytes()


def _as_array(form: Any, value: object) -> object:
    if not isinstance(value, bytes):
        raise ValueError(f"an array is {type(value)}; allowed: bytes")
    return np.frombuffer(value, dtype=get_args(get_args(form)[1])[0])
