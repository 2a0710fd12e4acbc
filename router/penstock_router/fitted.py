"""What is learned per class of endpoints: profiles fitted to measured passes, and how far TTFT predictions are off. One a scheduler.

Endpoints of one pool with one declared profile are a class. The pass watch hands over what it measured; now and then a batch
is learned from, and the rows of the class get the coefficients in force, declared or fitted, and the deviation of TTFT
predictions, the class's own or the model's. An endpoint that is plainly slower or faster than its class (a throttled
accelerator, a noisy neighbour) gets the coefficients times a factor of its own. It sees no request.
"""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from penstock_core import profile as pc
from penstock_core.endpoint import Endpoint
from penstock_core.profile import EngineProfile, is_finite_positive
from penstock_core.profile_fit import Fit, FitState, FittedProfile, Passes, PoolFit

from penstock_router import columns as col
from penstock_router.beliefs import Beliefs
from penstock_router.residuals import ResidualState, TtftResiduals

_BATCH = 32
_MOST_KEPT = 64
"""Measurements kept until the next batch; with more the newest are passed over, so that learning costs the same at any rate.

Once a declared profile has been found right, or wrong, only a change of its engines is news: a batch is of so many then, and the fit
learns from the newest _BATCH."""
_LEARN_EVERY_S = 0.25
_WORTH_TELLING = 0.01
"""Rows follow the deviation of predictions when it has changed by this share."""
_MOST_CLASSES = 64
"""With so many, those without endpoints are dropped before another one comes."""
_NEWEST_WEIGHT = 0.02
_LEAST_PASSES = 64
"""Of an endpoint, before it has a factor of its own."""
_APART, _ALIKE = math.log(1.15), math.log(1.08)
"""How far from its class an endpoint must be to get one, and how near to lose it."""
_FURTHEST = math.log(10.0)
_PREFILL_TIMES = [*range(pc.PREFILL_CONSTANT, pc.PREFILL_PAIR + 1), *range(pc.FIRST_KNOT + 1, pc.COEFFICIENTS, 2)]
_DECODE_TIMES = [pc.DECODE_FLOOR, *range(pc.DECODE_SMALL, pc.DECODE_LARGE + 4)]
"""Coefficients that are seconds of computing."""


class ClassState(NamedTuple):
    """What `explain` and metrics show of one class of endpoints."""

    pool: str
    profile: str
    """Name of the declared one."""
    endpoints: int
    prefill: FitState
    decode: FitState
    apart: dict[str, float]
    """Endpoints with a factor of their own: how many times as long as their class they take."""
    ttft: ResidualState
    """How far off TTFT predictions are taken to be."""


class _Pace:
    """How long one endpoint takes, compared with its class."""

    __slots__ = ("factor", "log_ratio", "passes")

    def __init__(self) -> None:
        self.log_ratio = 0.0
        self.passes = 0
        self.factor = 1.0

    def observe(self, log_ratio: float) -> None:
        self.passes += 1
        weight = max(_NEWEST_WEIGHT, 1.0 / self.passes)
        self.log_ratio += weight * (max(-_FURTHEST, min(_FURTHEST, log_ratio)) - self.log_ratio)

    def decide(self, usual: float) -> bool:
        """Whether the factor has changed; `usual` is the log ratio of the class's median endpoint."""
        off = self.log_ratio - usual
        apart = self.passes >= _LEAST_PASSES and abs(off) > (_ALIKE if self.factor != 1.0 else _APART)
        factor = math.exp(off) if apart else 1.0
        changed = abs(factor / self.factor - 1.0) > _WORTH_WRITING
        if changed:
            self.factor = factor
        return changed


_WORTH_WRITING = 0.01


class _Class:
    __slots__ = ("coefficients", "fit", "pool", "residuals", "rows", "seen", "told_sigma", "told_slip_s")

    def __init__(self, pool: str, declared: EngineProfile) -> None:
        self.pool = pool
        self.fit = FittedProfile(declared)
        self.coefficients: NDArray[np.float64] = declared.coefficients()
        self.rows: dict[int, _Pace] = {}
        self.seen: list[tuple[int, Passes]] = []
        self.residuals = TtftResiduals()
        self.told_slip_s = self.told_sigma = math.inf  # the deviation that the rows have


class FittedProfiles:
    """State: the classes, what each has learned, and which rows follow it. Classes stay when their endpoints go."""

    def __init__(self, beliefs: Beliefs) -> None:
        self._beliefs = beliefs
        self.residuals = TtftResiduals()
        """Of all the model's predictions: what a class goes by until it has errors enough of its own."""
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
        one.rows[r] = _Pace()
        self._class_of[r] = one
        self._beliefs.replace_profile(r, one.coefficients)
        self._write_residuals(one)

    def leave(self, r: int) -> None:
        """Row r is nobody's, or another's from now on."""
        one = self._class_of.pop(r, None)
        if one is not None:
            del one.rows[r]
            one.seen = [(row, passes) for row, passes in one.seen if row != r]

    def take(self, r: int, seen: Passes) -> None:
        """Passes measured at row r."""
        one = self._class_of.get(r)
        if one is not None and len(one.seen) < _MOST_KEPT:
            one.seen.append((r, seen))

    def check_ttft(self, r: int, predicted_s: float, measured_s: float) -> None:
        """Seconds from placing at row r to the end of the prefill, as predicted (0: not) and as measured."""
        self.residuals.observe(predicted_s, measured_s)
        one = self._class_of.get(r)
        if one is not None:
            one.residuals.observe(predicted_s, measured_s)

    def learn(self, now: float, fitted: bool) -> None:
        """Learn from what has come together, at most every quarter of a second; some 0.3 ms then, nothing otherwise.

        Not `fitted`: profiles stay as declared.
        """
        if now - self._learned_s < _LEARN_EVERY_S:
            return
        self._learned_s = now
        ready = [one for one in self._classes.values() if fitted and len(one.seen) >= (_MOST_KEPT if one.fit.known else _BATCH)]
        for one in ready:
            self._learn(one)
        for one in self._classes.values():
            if ready:
                self._write_profiles(one)
            known = self._known(one)
            if abs(known.slip_s / one.told_slip_s - 1.0) + abs(known.sigma / one.told_sigma - 1.0) > _WORTH_TELLING:
                self._write_residuals(one)

    def _write_residuals(self, one: _Class) -> None:
        """Give the rows of the class the deviation in force: its own, or all the model's until there are errors enough."""
        known, rows = self._known(one), list(one.rows)
        one.told_slip_s, one.told_sigma = known.slip_s, known.sigma
        self._beliefs.rows[rows, col.SLIP_S] = one.told_slip_s
        self._beliefs.rows[rows, col.SIGMA] = one.told_sigma

    def _known(self, one: _Class) -> TtftResiduals:
        return one.residuals if one.residuals.known else self.residuals

    def _learn(self, one: _Class) -> None:
        for r, seen in one.seen:
            took, expected = seen.seconds, _expected_s(one.fit, seen)
            if is_finite_positive(took) and is_finite_positive(expected):
                one.rows[r].observe(math.log(took / expected))
        # What the class learns from is what its usual endpoint would have taken.
        newest = one.seen[-_BATCH:] if one.fit.known else one.seen
        one.fit.learn([seen._replace(seconds=seen.seconds / one.rows[r].factor) for r, seen in newest])
        one.seen.clear()
        self.learned += 1

    def _write_profiles(self, one: _Class) -> None:
        """Give the class's rows what is in force."""
        coefficients = one.fit.coefficients()
        coefficients[_PREFILL_TIMES] *= self._hoped(one, lambda fit: fit.prefill)
        coefficients[_DECODE_TIMES] *= self._hoped(one, lambda fit: fit.decode)
        changed = not np.array_equal(coefficients, one.coefficients, equal_nan=True)
        one.coefficients = coefficients
        known = [pace.log_ratio for pace in one.rows.values() if pace.passes >= _LEAST_PASSES]
        usual = statistics.median(known) if known else 0.0
        for r, pace in one.rows.items():
            if pace.decide(usual) or changed:
                own = coefficients.copy()
                own[_PREFILL_TIMES + _DECODE_TIMES] *= pace.factor
                self._beliefs.replace_profile(r, own)

    def _hoped(self, one: _Class, phase: Callable[[FittedProfile], Fit]) -> float:
        """What the seconds declared for a class of which little was measured are multiplied by: where the others are faster than declared,
        it is taken to be, too. Believed to be slow it would get no requests that show that it is not."""
        if phase(one.fit).known:
            return 1.0
        measured = [phase(other.fit) for other in self._classes.values() if other.rows and phase(other.fit).known]
        return round(min(1.0, statistics.median(fit.scale if fit.in_force else 1.0 for fit in measured)), 2) if measured else 1.0

    def _state(self, one: _Class) -> ClassState:
        prefill, decode, ttft = one.fit.prefill.state(), one.fit.decode.state(), self._known(one).state(one.residuals.known)
        return ClassState(one.pool, one.fit.declared.name, len(one.rows), prefill, decode, self._apart(one), ttft)

    def _apart(self, one: _Class) -> dict[str, float]:
        known = {r: self._beliefs.endpoints[r] for r in one.rows}
        return {endpoint.id: round(one.rows[r].factor, 3) for r, endpoint in known.items() if endpoint and one.rows[r].factor != 1.0}

    def states(self) -> list[ClassState]:
        """All classes with an endpoint."""
        return [self._state(one) for one in self._classes.values() if one.rows]

    def told(self) -> tuple[PoolFit, ...]:
        """For autoscalers: of each pool what its largest class has come to, once enough passes were measured."""
        largest: dict[str, _Class] = {}
        for one in self._classes.values():
            known = largest.get(one.pool)
            if one.rows and (known is None or len(one.rows) > len(known.rows)):
                largest[one.pool] = one
        fits = (_told(one) for one in largest.values())
        return tuple(fit for fit in fits if fit is not None)


def _told(one: _Class) -> PoolFit | None:
    """None until a phase has been measured."""
    states = {"prefill_ratio": one.fit.prefill.state(), "decode_ratio": one.fit.decode.state()}
    in_force = {name: state for name, state in states.items() if state.in_force}
    widths = [state.interval_ratio if state.in_force else state.declared_interval_ratio for state in states.values()]
    measured = [width for width in widths if width is not None]
    if not measured:
        return None
    return PoolFit(
        pool=one.pool,
        declared=one.fit.declared.name,
        row=tuple(one.coefficients.tolist()) if in_force else (),
        samples=sum(state.samples for state in states.values()),
        interval_ratio=max(measured),
        **{name: state.scale for name, state in in_force.items()},
    )


def _expected_s(fit: FittedProfile, seen: Passes) -> float:
    """Seconds that the class's profile in force gives such passes."""
    return sum(fit.prefill_s(new, pairs) for new, pairs in seen.prefills) + seen.steps * fit.decode_s(seen.streams, seen.context_tokens)
