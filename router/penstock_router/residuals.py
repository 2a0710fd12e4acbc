"""How far off TTFT predictions are: the deviation that the cost's miss term needs. One a scheduler.

Two parts add up, as variances: `slip_s`, seconds whatever was predicted (a prompt that joins a pass makes it longer, by a
pass at most), and `sigma`, a share of the prediction (the profile is wrong by so much). Measured on the conversation trace
slip is 2–50 ms and sigma 0.01; one relative deviation for both would be ruled by short prompts and say nothing of long ones.
"""

import math

_PRIOR_SLIP_S = 0.02
_PRIOR_SIGMA = 0.03
_SLIP_BOUNDS_S = (0.002, 1.0)
_SIGMA_BOUNDS = (0.005, 0.5)
"""Below them the miss term turns into a step, above them into a slope."""
_NEWEST_WEIGHT = 0.02
_MOST_EXCESS = 9.0
"""A squared error counts for at most this many variances: a lost second must not rule for minutes."""


class TtftResiduals:
    """Variance components, each moved by its share of what an error shows: the stochastic form of the EM algorithm."""

    def __init__(self) -> None:
        self.slip_s = _PRIOR_SLIP_S
        self.sigma = _PRIOR_SIGMA

    @property
    def trusted(self) -> bool:
        """Whether predictions have been near enough to refuse by."""
        return self.slip_s < _SLIP_BOUNDS_S[1] and self.sigma < _SIGMA_BOUNDS[1]

    def deviation_s(self, predicted_s: float) -> float:
        """Standard deviation of the truth around such a prediction."""
        return math.hypot(self.slip_s, self.sigma * predicted_s)

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """Both in seconds; a prediction of 0 says that there was none."""
        if predicted_s <= 0.0 or not math.isfinite(measured_s):
            return
        slip, share, error = self.slip_s, self.sigma * predicted_s, measured_s - predicted_s
        slip *= slip
        variance = slip + share * share
        excess = min(_MOST_EXCESS, error * error / variance) - 1.0
        slips = slip / variance
        self.slip_s = _within(self.slip_s * math.sqrt(1.0 + _NEWEST_WEIGHT * slips * excess), _SLIP_BOUNDS_S)
        self.sigma = _within(self.sigma * math.sqrt(1.0 + _NEWEST_WEIGHT * (1.0 - slips) * excess), _SIGMA_BOUNDS)


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
