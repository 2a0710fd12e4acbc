"""How far off TTFT predictions are: the relative deviation σ that the cost's miss term needs. One a scheduler."""

import math

_PRIOR_SIGMA = 0.1
_LEAST_SAMPLES = 32
_NEWEST_WEIGHT = 0.02
_BOUNDS = (0.05, 0.4)
"""The policy was measured to be insensitive within these; outside them the miss term turns into a step or into a slope."""


class TtftResiduals:
    """σ is 0.1 until LEAST_SAMPLES predictions have met their truth."""

    def __init__(self) -> None:
        self.sigma = _PRIOR_SIGMA
        self._samples = 0
        self._mean_square = 0.0

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """Both in seconds; a prediction of 0 says that there was none."""
        if predicted_s <= 0.0 or not math.isfinite(measured_s):
            return
        residual = min(1.0, abs(measured_s - predicted_s) / predicted_s)
        self._samples += 1
        self._mean_square += max(_NEWEST_WEIGHT, 1.0 / self._samples) * (residual * residual - self._mean_square)
        if self._samples >= _LEAST_SAMPLES:
            self.sigma = min(_BOUNDS[1], max(_BOUNDS[0], math.sqrt(self._mean_square)))
