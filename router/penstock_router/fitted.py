"""What is learned per class of endpoints: profiles fitted to measured passes. One a scheduler.

Endpoints of one pool with one declared profile are a class. The pass watch hands over what it measured; now and then a batch
is learned from, and the rows of the class get the coefficients in force, declared or fitted. It sees no request.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from penstock_core.endpoint import Endpoint
from penstock_core.profile import EngineProfile
from penstock_core.profile_fit import FitState, FittedProfile, Passes

from penstock_router.beliefs import Beliefs

_BATCH = 32
_MOST_KEPT = 64
"""Measurements kept until the next batch; with more the newest are passed over, so that learning costs the same at any rate."""
_LEARN_EVERY_S = 0.25
_MOST_CLASSES = 64
"""With so many, those without endpoints are dropped before another one comes."""


class ClassState(NamedTuple):
    """What `explain` and metrics show of one class of endpoints."""

    pool: str
    profile: str
    """Name of the declared one."""
    endpoints: int
    prefill: FitState
    decode: FitState


class _Class:
    __slots__ = ("coefficients", "fit", "pool", "rows", "seen")

    def __init__(self, pool: str, declared: EngineProfile) -> None:
        self.pool = pool
        self.fit = FittedProfile(declared)
        self.coefficients: NDArray[np.float64] = declared.coefficients()
        self.rows: set[int] = set()
        self.seen: list[Passes] = []


class FittedProfiles:
    """State: the classes, what each has learned, and which rows follow it. Classes stay when their endpoints go."""

    def __init__(self, beliefs: Beliefs) -> None:
        self._beliefs = beliefs
        self._classes: dict[tuple[str, EngineProfile], _Class] = {}
        self._class_of: dict[int, _Class] = {}
        self.learned = 0
        """Batches so far."""
        self._learned_s = 0.0

    def join(self, r: int, endpoint: Endpoint) -> None:
        """Row r is this endpoint's: it gets what its class has learned."""
        record = endpoint.record
        self.leave(r)
        key = (record.pool, record.profile)
        one = self._classes.get(key)
        if one is None:
            if len(self._classes) >= _MOST_CLASSES:
                self._classes = {known: each for known, each in self._classes.items() if each.rows}
            one = self._classes[key] = _Class(*key)
        one.rows.add(r)
        self._class_of[r] = one
        self._beliefs.replace_profile(r, one.coefficients)

    def leave(self, r: int) -> None:
        """Row r is nobody's, or another's from now on."""
        one = self._class_of.pop(r, None)
        if one is not None:
            one.rows.discard(r)

    def take(self, r: int, seen: Passes) -> None:
        """Passes measured at row r."""
        one = self._class_of.get(r)
        if one is not None and len(one.seen) < _MOST_KEPT:
            one.seen.append(seen)

    def learn(self, now: float) -> None:
        """Learn from what has come together, at most every quarter of a second; some 0.3 ms then, nothing otherwise."""
        if now - self._learned_s < _LEARN_EVERY_S:
            return
        self._learned_s = now
        for one in self._classes.values():
            if len(one.seen) >= _BATCH:
                self._learn(one)

    def _learn(self, one: _Class) -> None:
        one.fit.learn(one.seen)
        one.seen.clear()
        self.learned += 1
        coefficients = one.fit.coefficients()
        if not np.array_equal(coefficients, one.coefficients, equal_nan=True):
            one.coefficients = coefficients
            for r in one.rows:
                self._beliefs.replace_profile(r, coefficients)

    def states(self) -> list[ClassState]:
        """All classes with an endpoint."""
        return [
            ClassState(one.pool, one.fit.declared.name, len(one.rows), one.fit.prefill.state(), one.fit.decode.state())
            for one in self._classes.values()
            if one.rows
        ]
