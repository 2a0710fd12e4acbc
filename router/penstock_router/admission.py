"""Who may start now: a bounded number of requests in all and per model, and an honest Retry-After for the rest.

The director asks `admit` once per request and calls `release` once for each that was admitted. Everything here is
synchronous and takes `now`; queueing by slack and fairness between tenants will take the place of the plain bound.
"""

import math

import msgspec

LEAST_RETRY_S = 1
MOST_RETRY_S = 60
_RATE_WINDOW_S = 10.0


class AdmissionLimits(msgspec.Struct, frozen=True):
    """Most requests being served at once; both ≥ 1."""

    total_requests: int
    model_requests: int


class _Flow:
    """What is active in one model, and how fast it drains."""

    __slots__ = ("active", "rate_per_s", "refused", "seen_s")

    def __init__(self) -> None:
        self.active = 0
        self.refused = 0  # turned away and, by the drain rate, not yet made room for
        self.rate_per_s = 0.0  # completions a second, decaying average over _RATE_WINDOW_S
        self.seen_s = -math.inf

    def drained(self, now: float) -> None:
        self.active -= 1
        self.refused = max(0, self.refused - 1)
        self.rate_per_s = self.rate_at(now) + 1.0 / _RATE_WINDOW_S
        self.seen_s = now

    def rate_at(self, now: float) -> float:
        return self.rate_per_s * math.exp(-max(0.0, now - self.seen_s) / _RATE_WINDOW_S) if self.rate_per_s else 0.0


class Admission:
    """State: how many requests are active, in all and per model; it changes only in `admit` and `release`."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self._flows: dict[str, _Flow] = {}
        self.active = 0

    def admit(self, model: str, now: float) -> int | None:
        """None: admitted, `release` must follow. Else whole seconds after which there should be room, 1..60."""
        flow = self._flows.get(model)
        if flow is None:
            flow = self._flows[model] = _Flow()
        if self.active < self._limits.total_requests and flow.active < self._limits.model_requests:
            self.active += 1
            flow.active += 1
            return None
        flow.refused += 1
        rate = flow.rate_at(now)
        # The n-th one turned away fits after n completions: later ones are told to come later, not all at once.
        wait_s = flow.refused / rate if rate > 0.0 else MOST_RETRY_S
        return max(LEAST_RETRY_S, min(MOST_RETRY_S, math.ceil(wait_s)))

    def release(self, model: str, now: float) -> None:
        """A request that was admitted has ended."""
        self.active -= 1
        self._flows[model].drained(now)

    def active_in(self, model: str) -> int:
        """Requests of one model being served now."""
        flow = self._flows.get(model)
        return flow.active if flow is not None else 0
