"""How far off TTFT predictions are: the deviation that the cost's miss term needs. One a model, and one a class of endpoints.

Two parts add up, as variances: `slip_s`, seconds whatever was predicted (a prompt that joins a pass makes it longer, by a
pass at most), and `sigma`, a share of the prediction (the profile is wrong by so much). Measured on the conversation trace
slip is 2–50 ms and sigma 0.01; one relative deviation for both would be ruled by short prompts and say nothing of long ones.
`fitted` keeps them and says which is in force where.
"""

import math
from collections import deque
from typing import NamedTuple

_PRIOR_SLIP_S = 0.02
_PRIOR_SIGMA = 0.03
_SLIP_BOUNDS_S = (0.002, 1.0)
_SIGMA_BOUNDS = (0.005, 0.5)
"""Below them the miss term turns into a step, above them into a slope."""
_NEWEST_WEIGHT = 0.02
_MOST_EXCESS = 9.0
"""A squared error counts for at most this many variances: a lost second must not rule for minutes."""
_NEWEST = 256
"""Errors whose sizes, in deviations as believed before each of them, are looked at."""
_LEAST_ERRORS = 200
"""Of a class, before its own deviation may be in force."""
_GUARD_EVERY = 32
_INSIDE = 0.9
_NORMAL = 1.6448536269514722
"""Deviations within which `_INSIDE` of normal errors are."""


class ResidualState(NamedTuple):
    """What `explain` shows of the deviations of one class of endpoints."""

    slip_s: float
    sigma: float
    widened: float
    """Times as large as learned, so that nine in ten errors are where a normal distribution has them."""
    errors: int
    """Predictions that were checked."""
    own: bool
    """Learned from this class's errors; False: from all of the model's."""


class TtftResiduals:
    """Variance components, each moved by its share of what an error shows: the stochastic form of the EM algorithm.

    They begin at what is declared. A conformal guard beside them: where more than a tenth of the newest errors lie beyond what a normal
    deviation of that size allows, both are widened by as much as it takes.
    """

    def __init__(self) -> None:
        self._slip_s = _PRIOR_SLIP_S
        self._sigma = _PRIOR_SIGMA
        self._sizes: deque[float] = deque(maxlen=_NEWEST)
        self.widened = 1.0
        self.errors = 0
        """So many so far."""

    @property
    def slip_s(self) -> float:
        """In seconds, in force."""
        return _within(self._slip_s * self.widened, _SLIP_BOUNDS_S)

    @property
    def sigma(self) -> float:
        """As a share of the prediction, in force."""
        return _within(self._sigma * self.widened, _SIGMA_BOUNDS)

    @property
    def known(self) -> bool:
        """Whether there are errors enough to go by them alone."""
        return self.errors >= _LEAST_ERRORS

    @property
    def trusted(self) -> bool:
        """Whether predictions have been near enough to refuse by."""
        return self._slip_s < _SLIP_BOUNDS_S[1] and self._sigma < _SIGMA_BOUNDS[1]

    def deviation_s(self, predicted_s: float) -> float:
        """Standard deviation of the truth around such a prediction."""
        return math.hypot(self.slip_s, self.sigma * predicted_s)

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """Both in seconds; a prediction of 0 says that there was none."""
        if predicted_s <= 0.0 or not math.isfinite(measured_s):
            return
        slip, share, error = self._slip_s, self._sigma * predicted_s, measured_s - predicted_s
        slip *= slip
        variance = slip + share * share
        squared = error * error / variance
        excess = min(_MOST_EXCESS, squared) - 1.0
        slips = slip / variance
        self._slip_s = _within(self._slip_s * math.sqrt(1.0 + _NEWEST_WEIGHT * slips * excess), _SLIP_BOUNDS_S)
        self._sigma = _within(self._sigma * math.sqrt(1.0 + _NEWEST_WEIGHT * (1.0 - slips) * excess), _SIGMA_BOUNDS)
        self._sizes.append(squared)
        self.errors += 1
        if self.errors % _GUARD_EVERY == 0 and self.known:
            self._guard()

    def _guard(self) -> None:
        """Split-conformal: the size that nine in ten of the newest errors have at most, against that of normal ones."""
        sizes = sorted(self._sizes)
        largest = sizes[min(len(sizes) - 1, math.ceil((len(sizes) + 1) * _INSIDE) - 1)]
        self.widened = max(1.0, math.sqrt(largest) / _NORMAL)

    def state(self, own: bool) -> ResidualState:
        return ResidualState(self.slip_s, self.sigma, self.widened, self.errors, own)


def _within(value: float, bounds: tuple[float, float]) -> float:
    least, most = bounds
    return least if value < least else most if value > most else value


class ItlMargin:
    """Which part of an ITL target a predicted decode step may take, so that few streams miss it: learned from those that ended.

    What the prediction does not see (prefills between the steps, streams that grow) makes streams miss: each lowers the margin,
    each that met its target raises it by a 25th of that, so that it rests where 4 % miss.
    """

    def __init__(self) -> None:
        self.value = _MARGINS[1]

    def observe(self, missed: bool) -> None:
        self.value = min(_MARGINS[1], max(_MARGINS[0], self.value - 25.0 * _MARGIN_STEP if missed else self.value + _MARGIN_STEP))


_MARGINS = (0.5, 0.95)
_MARGIN_STEP = 0.001
