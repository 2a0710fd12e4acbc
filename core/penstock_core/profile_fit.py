"""Online correction of a profile by what is observed: recursive least squares with conformal guards.

One fit per endpoint class. The router feeds it measured prefill and decode times and asks for estimates; where the
estimate cannot be trusted (too few samples, wide interval, features never seen) the declared profile answers. Sources:
recursive least squares with exponential forgetting (Ljung, System Identification, §11.2); split-conformal intervals
(Lei et al., 2018).
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from penstock_core.profile import EngineProfile, is_finite_positive

LEAST_RESIDUALS = 200
WIDEST_INTERVAL_RATIO = 0.30
"""An interval wider than this share of the estimate means: use the declared profile."""
COVERAGE = 0.90
_MOST_TRACE = 1.0
_RANGE_SLACK = 1.25
"""Features up to this factor beyond what was seen still count as seen."""


class OnlineFit:
    """seconds ≈ features · theta, with forgetting; features of shape (k,)."""

    def __init__(self, theta: Sequence[float], scale: Sequence[float], *, forgetting: float = 0.998, residuals: int = 512) -> None:
        # `scale` brings the features near 1, else one step's covariance in C² drowns the constant in rounding.
        self._scale = np.asarray(scale, dtype=float)
        self._theta = np.asarray(theta, dtype=float) * self._scale
        self._covariance = np.eye(len(self._theta)) * 1e-2
        self._forgetting = forgetting
        self._residuals: deque[float] = deque(maxlen=residuals)  # |error| / estimate, each taken before learning from it
        self._seen_most = np.zeros(len(self._theta))
        self._half_width_ratio = np.inf

    def observe(self, features: Sequence[float], seconds: float) -> None:
        """Learn from one measurement; absurd ones (not finite, not positive) are passed over."""
        if not is_finite_positive(seconds):
            return
        x: NDArray[np.float64] = np.asarray(features, dtype=float) / self._scale
        estimate = float(x @ self._theta)
        self._residuals.append(abs(seconds - estimate) / max(estimate, 1e-9))
        # Relative errors count: a 5 ms step must be as right as a 2 s prefill. So the row is weighted by 1 / seconds.
        weight = 1.0 / max(estimate, 0.1 * seconds)
        row = x * weight
        gain = self._covariance @ row / (self._forgetting + row @ self._covariance @ row)
        self._theta = self._theta + gain * weight * (seconds - estimate)
        covariance = (self._covariance - np.outer(gain, row @ self._covariance)) / self._forgetting
        # Forgetting without excitation lets the covariance grow for ever ("wind-up"): keep its trace bounded.
        self._covariance = covariance / max(1.0, float(np.trace(covariance)) / _MOST_TRACE)
        self._seen_most = np.maximum(self._seen_most, x)
        if len(self._residuals) >= LEAST_RESIDUALS:
            rank = min(1.0, COVERAGE * (1 + 1 / len(self._residuals)))
            self._half_width_ratio = float(np.quantile(self._residuals, rank))

    def estimate_s(self, features: Sequence[float]) -> float | None:
        """Seconds, or None where the fit must not be trusted."""
        x = np.asarray(features, dtype=float) / self._scale
        if 2 * self._half_width_ratio > WIDEST_INTERVAL_RATIO or np.any(x > self._seen_most * _RANGE_SLACK):
            return None
        estimate = float(x @ self._theta)
        return estimate if estimate > 0 else None


class FittedProfile:
    """A declared profile corrected by observation; the same two questions, answered by the fit where it can be trusted."""

    def __init__(self, declared: EngineProfile) -> None:
        self.declared = declared
        self._prefill = OnlineFit(_start_prefill(declared), (1.0, 1e3, 1e6))
        self._decode = OnlineFit(_start_decode(declared), (1.0, 1e1, 1e4))

    def observe_prefill(self, new_tokens: int, cached_tokens: int, seconds: float) -> None:
        self._prefill.observe((1.0, new_tokens, new_tokens * (new_tokens + 2 * cached_tokens)), seconds)

    def observe_decode(self, streams: int, context_tokens: int, seconds: float) -> None:
        self._decode.observe((1.0, streams, context_tokens), seconds)

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float:
        if new_tokens <= 0:
            return 0.0
        fitted = self._prefill.estimate_s((1.0, new_tokens, new_tokens * (new_tokens + 2 * cached_tokens)))
        return self.declared.prefill_s(new_tokens, cached_tokens) if fitted is None else fitted

    def decode_s(self, streams: int, context_tokens: float) -> float:
        if streams <= 0:
            return 0.0
        fitted = self._decode.estimate_s((1.0, streams, context_tokens))
        return self.declared.decode_s(streams, context_tokens) if fitted is None else fitted


def _start_prefill(declared: EngineProfile) -> list[float]:
    tokens = np.linspace(64, declared.pass_tokens, 64)
    columns = np.stack([np.ones_like(tokens), tokens, tokens * tokens], axis=1)
    return _least_squares(columns, [declared.prefill_s(int(u)) for u in tokens])


def _start_decode(declared: EngineProfile) -> list[float]:
    streams, context = np.meshgrid(np.linspace(1, 64, 8), np.linspace(0.01, 0.6, 8) * declared.kv_tokens)
    columns = np.stack([np.ones(streams.size), streams.ravel(), context.ravel()], axis=1)
    return _least_squares(columns, [declared.decode_s(int(b), float(c)) for _, b, c in columns])


def _least_squares(columns: NDArray[np.float64], seconds: Sequence[float]) -> list[float]:
    weights = 1 / np.asarray(seconds)  # relative errors count, not absolute ones
    solution, *_ = np.linalg.lstsq(columns * weights[:, None], np.ones(len(weights)), rcond=None)
    return [float(value) for value in solution]
