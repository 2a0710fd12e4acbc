"""Latency targets, and how much of a window of requests met them.

The router judges placements by these targets, the autoscaler sizes pools by attainment. No clock: callers measure.
"""

from collections.abc import Iterable

import msgspec


class Slo(msgspec.Struct, frozen=True):
    """Targets of one request. A target is met when the measured value is at most the target."""

    ttft_s: float = 2.0
    """Seconds from the request's receipt to the first content token sent, queueing included; > 0."""
    itl_s: float = 0.050
    """Seconds a token after the first, averaged over the request; > 0."""

    def __post_init__(self) -> None:
        for name, value in (("ttft_s", self.ttft_s), ("itl_s", self.itl_s)):
            if not 0.0 < value < 86_400.0:
                raise ValueError(f"{name} is {value!r}; allowed: more than 0 and less than 86400 seconds")

    def met(self, ttft_s: float, mean_itl_s: float | None) -> bool:
        """Whether a finished request met both targets; `mean_itl_s` is None for an answer of one token, which passes."""
        return ttft_s <= self.ttft_s and (mean_itl_s is None or mean_itl_s <= self.itl_s)


DEFAULT_SLO = Slo()
"""Where neither the request nor the model names targets."""


class Attainment(msgspec.Struct, frozen=True):
    """Requests of a window, and how many met their targets; sums with `+`, so windows and routers merge."""

    requests: int = 0
    ttft_met: int = 0
    itl_met: int = 0
    both_met: int = 0
    """Goodput counts these. A shed or failed request is counted in `requests` only."""

    def __add__(self, other: "Attainment") -> "Attainment":
        return Attainment(
            self.requests + other.requests,
            self.ttft_met + other.ttft_met,
            self.itl_met + other.itl_met,
            self.both_met + other.both_met,
        )

    @property
    def goodput_ratio(self) -> float | None:
        """Share of requests that met both targets, 0..1; None for a window without requests."""
        return self.both_met / self.requests if self.requests else None


def attainment(slo: Slo, answers: Iterable[tuple[float, float | None] | None]) -> Attainment:
    """Attainment of `answers`: (ttft_s, mean_itl_s or None) each, or None for a shed or failed request."""
    total = Attainment()
    for answer in answers:
        if answer is None:
            total += Attainment(requests=1)
            continue
        ttft_met, itl_met = answer[0] <= slo.ttft_s, answer[1] is None or answer[1] <= slo.itl_s
        total += Attainment(1, ttft_met, itl_met, ttft_met and itl_met)
    return total
