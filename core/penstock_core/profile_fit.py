"""Online correction of a declared profile by measured passes: least squares with forgetting, and guards on its use.

One `FittedProfile` per endpoint class. The router feeds it what it saw of passes and takes coefficients from it; where a fit
cannot be trusted (too few samples, wide interval, no better than what was declared) the declared coefficients stay. Sources:
recursive least squares with exponential forgetting, here in information form, many samples at a time (Ljung, System
Identification, §11.2); split-conformal intervals (Lei et al., 2018); Huber's weights for outliers.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock_core import profile as pc
from penstock_core.profile import EngineProfile, is_finite_positive

Floats = NDArray[np.float64]

LEAST_RESIDUALS = 200
LEAST_WHERE_WRONG = 48
"""Where what is declared is off by more than a fit may be, so few do."""
MOST_RESIDUALS = 512
WIDEST_INTERVAL_RATIO = 0.30
"""An interval wider than this share of the estimate means: use the declared profile."""
COVERAGE = 0.90
_FORGETTING = 0.998
_SCALE_PRIOR, _SHAPE_PRIOR = 0.5, 8.0
"""Samples that the declared scale, and the declared shape (over the whole range of the features), count for."""
_BETTER, _BETTER_BY = 0.9, 0.02
"""A fit begins to be used when its interval is narrower than this share of that of the declared profile, and by so much."""
_NEWEST = 32
_DRIFTED = 2.0
"""Half of the newest residuals beyond so many half-widths: the engine has changed, and what is older is forgotten."""
_SINGLY = 32
"""The first samples are learned from one by one."""
_KEPT_INFORMATION = 0.02
_BOUNDS = (0.1, 10.0)
"""Fitted over declared seconds, anywhere in the range of the features; outside a fit is not used."""


class Passes(NamedTuple):
    """Passes of one engine that were measured together: sums over them, seconds for all."""

    prefills: tuple[tuple[float, float], ...]
    """(new tokens, Σ new·cached tokens) of each pass with prompts in it."""
    steps: int
    """Passes with decoding streams in them."""
    streams: float
    context_tokens: float
    """Streams, and their context, of the average step."""
    seconds: float


class FitState(NamedTuple):
    """What `explain` and metrics show of one fit."""

    samples: int
    in_force: bool
    why: str
    interval_ratio: float | None
    """Full width of the conformal interval ÷ estimate; None with too few samples."""
    declared_interval_ratio: float | None
    """The same of the declared profile, on the same samples."""
    scale: float
    """Fitted ÷ declared seconds, mean over the range of the features."""


class PoolFit(msgspec.Struct, frozen=True, kw_only=True):
    """What one router, or all of a model together, measured of a pool's engines, for whoever plans with their profile."""

    pool: str
    declared: str
    """Name of the profile that was corrected."""
    row: Annotated[tuple[float, ...], msgspec.Meta(max_length=pc.COEFFICIENTS)] = ()
    """The profile in force, as `EngineProfile.coefficients`; empty: what is declared holds."""
    samples: int
    interval_ratio: float
    """Width of the wider interval of what is in force ÷ estimate, of the phases that have been measured."""
    prefill_ratio: float = 1.0
    """Fitted ÷ declared seconds; 1: as declared."""
    decode_ratio: float = 1.0

    @property
    def weight(self) -> tuple[object, ...]:
        """The larger, the better it is known; beyond MOST_RESIDUALS samples all have seen as much as is kept. No two weigh alike."""
        known = (min(self.samples, MOST_RESIDUALS), -self.interval_ratio)
        return *known, self.samples, self.declared, self.row, self.prefill_ratio, self.decode_ratio


def best_fits(fits: Iterable[PoolFit]) -> tuple[PoolFit, ...]:
    """The one that is known best, for each pool, by name: routers see the same engines, each some of their passes."""
    found: dict[str, PoolFit] = {}
    for fit in fits:
        known = found.get(fit.pool)
        if known is None or fit.weight > known.weight:
            found[fit.pool] = fit
    return tuple(found[pool] for pool in sorted(found))


class Fit:
    """seconds ≈ a·declared + θ·features, weighted by 1 ÷ seconds: a 5 ms step must be as right as a 2 s prefill.

    The prior (a = 1, θ = 0) never fades: where nothing was seen, the declared shape holds, scaled. `grid`: features over the
    whole range of use, shape (points, k), the declared seconds in the first column.
    """

    def __init__(self, grid: Floats) -> None:
        self._grid = grid
        self._scale = grid.max(axis=0)  # brings the features near 1, else u² drowns the constant in rounding
        self._scale[0] = 1.0
        relative = grid / self._scale / grid[:, :1]
        count = grid.shape[1]
        prior = np.zeros((count, count))
        prior[0, 0] = _SCALE_PRIOR
        prior[1:, 1:] = _SHAPE_PRIOR / len(grid) * (relative[:, 1:].T @ relative[:, 1:])
        self._prior = prior
        self._prior_moment = prior[:, 0].copy()  # prior · (1, 0, …)
        self._information = np.zeros((count, count))
        self._moment = np.zeros(count)
        self.theta: Floats = np.eye(count)[0]
        """(a, θ…), shape (k,)."""
        self._residuals = np.zeros(0)
        self._declared_residuals = np.zeros(0)
        self._half_width = self._declared_half_width = np.inf
        self.samples = 0
        self.forgotten = 0
        """How often the past was forgotten because the engine had changed."""
        self.in_force = False
        self.why = f"0 of {LEAST_RESIDUALS} samples"

    def learn(self, features: Floats, seconds: Floats) -> None:
        """Take in a batch: features of shape (n, k), declared seconds first; seconds of shape (n,), finite and positive."""
        if self.samples < _SINGLY:  # else what is declared would be judged by in a whole batch of residuals
            for at in range(len(seconds)):
                self._learn(features[at : at + 1], seconds[at : at + 1])
        else:
            self._learn(features, seconds)
        self._judge()

    def _learn(self, features: Floats, seconds: Floats) -> None:
        estimate = features @ self.theta
        error = (seconds - estimate) / np.maximum(estimate, 0.1 * seconds)
        self._residuals = np.append(self._residuals, np.abs(error))[-MOST_RESIDUALS:]  # each before learning from it
        declared = np.abs(seconds - features[:, 0]) / features[:, 0]
        self._declared_residuals = np.append(self._declared_residuals, declared)[-MOST_RESIDUALS:]
        self.samples += len(seconds)
        self._forget_if_drifted()
        spread = max(_quantile(self._residuals, COVERAGE), 1e-3)
        weights = np.minimum(1.0, spread / np.maximum(np.abs(error), 1e-9))
        weights *= _FORGETTING ** np.arange(len(seconds) - 1, -1, -1)
        rows = features / self._scale / np.maximum(estimate, 0.1 * seconds)[:, None]
        targets = seconds / np.maximum(estimate, 0.1 * seconds)
        fade = _FORGETTING ** len(seconds)
        self._information = fade * self._information + (rows * weights[:, None]).T @ rows
        self._moment = fade * self._moment + rows.T @ (weights * targets)
        self.theta = np.linalg.solve(self._prior + self._information, self._prior_moment + self._moment) / self._scale

    def _forget_if_drifted(self) -> None:
        if len(self._residuals) < LEAST_RESIDUALS or float(np.median(self._residuals[-_NEWEST:])) <= _DRIFTED * self._half_width:
            return
        self._residuals = self._residuals[-_NEWEST:]
        self._declared_residuals = self._declared_residuals[-_NEWEST:]
        self._information *= _KEPT_INFORMATION
        self._moment *= _KEPT_INFORMATION
        self.forgotten += 1

    def _judge(self) -> None:
        """Whether the fit is used from now on, and why."""
        known = len(self._residuals)
        if known < LEAST_WHERE_WRONG:
            self._half_width = self._declared_half_width = np.inf
            self.in_force, self.why = False, f"{known} of {LEAST_RESIDUALS} samples"
            return
        self._half_width = _quantile(self._residuals, COVERAGE)
        self._declared_half_width = _quantile(self._declared_residuals, COVERAGE)
        if known < LEAST_RESIDUALS and 2.0 * self._declared_half_width <= WIDEST_INTERVAL_RATIO:
            self.in_force, self.why = False, f"{known} of {LEAST_RESIDUALS} samples"
            return
        ratios = (self._grid @ self.theta) / self._grid[:, 0]
        interval, declared = 2.0 * self._half_width, 2.0 * self._declared_half_width
        needed = declared if self.in_force else min(declared * _BETTER, declared - _BETTER_BY)
        if interval > WIDEST_INTERVAL_RATIO:
            self.in_force, self.why = False, f"interval is {interval:.0%} of the estimate; allowed: {WIDEST_INTERVAL_RATIO:.0%}"
        elif not _BOUNDS[0] <= float(ratios.min()) <= float(ratios.max()) <= _BOUNDS[1]:
            self.in_force, self.why = False, f"it is {ratios.min():.2f} to {ratios.max():.2f} times what is declared"
        elif interval > needed:
            self.in_force, self.why = False, f"what is declared is as good: interval {declared:.0%} against {interval:.0%}"
        else:
            self.in_force, self.why = True, f"interval {interval:.0%} against {declared:.0%} of what is declared"

    @property
    def known(self) -> bool:
        """Whether enough was measured to say how right the declared profile is."""
        return self.in_force or len(self._residuals) >= LEAST_RESIDUALS

    @property
    def scale(self) -> float:
        """Fitted ÷ declared seconds, mean over the range of the features."""
        return float(np.mean((self._grid @ self.theta) / self._grid[:, 0]))

    def state(self) -> FitState:
        """For people and metrics."""
        known = np.isfinite(self._half_width)
        return FitState(
            self.samples,
            self.in_force,
            self.why,
            2.0 * float(self._half_width) if known else None,
            2.0 * float(self._declared_half_width) if known else None,
            self.scale,
        )


class FittedProfile:
    """A declared profile corrected by observation. Prefill is learned on [declared, 1, u, u², u·h] of a pass, decode on
    [declared, 1, b, C] of a step; what streams decode within a prefill pass is taken off by the present decode estimate."""

    def __init__(self, declared: EngineProfile) -> None:
        self.declared = declared
        tokens = np.geomspace(16, declared.pass_tokens, 24)
        held = (0.0, 4_096.0)
        self.prefill = Fit(np.array([self._prefill_features(((float(u), float(u) * h),)) for u in tokens for h in held]))
        streams, share = np.meshgrid(np.geomspace(1, declared.max_streams, 6), np.linspace(0.01, 0.9, 6))
        steps = zip(streams.ravel().tolist(), (share * declared.kv_tokens).ravel().tolist(), strict=True)
        self.decode = Fit(np.array([self._decode_features(1, b, c) for b, c in steps]))

    @property
    def known(self) -> bool:
        """Whether, of all that has been measured at all, enough was measured."""
        return all(fit.known or not fit.samples for fit in (self.prefill, self.decode))

    def learn(self, seen: Sequence[Passes]) -> bool:
        """Take in measured passes; whether `coefficients` may have changed. Absurd ones (not finite, not positive) are passed over."""
        decodes = [one for one in seen if not one.prefills and is_finite_positive(one.seconds)]
        if decodes:
            features = np.array([self._decode_features(one.steps, one.streams, one.context_tokens) for one in decodes])
            self.decode.learn(features, np.array([one.seconds for one in decodes]))
        prefills, seconds = [], []
        for one in seen:
            if not one.prefills:
                continue
            rest_s = one.seconds - one.steps * self.decode_s(one.streams, one.context_tokens)
            if is_finite_positive(rest_s):
                prefills.append(self._prefill_features(one.prefills))
                seconds.append(rest_s)
        if prefills:
            self.prefill.learn(np.array(prefills), np.array(seconds))
        return bool(decodes or prefills)

    def prefill_s(self, new_tokens: float, pairs: float = 0.0) -> float:
        """Seconds of a pass over so many new tokens, with Σ new·cached `pairs`."""
        features = self._prefill_features(((new_tokens, pairs),))
        return float(self.prefill.theta @ features) if self.prefill.in_force else float(features[0])

    def decode_s(self, streams: float, context_tokens: float) -> float:
        """Seconds of a decode step; 0 for no streams."""
        if streams <= 0:
            return 0.0
        features = self._decode_features(1, streams, context_tokens)
        return float(self.decode.theta @ features) if self.decode.in_force else float(features[0])

    def coefficients(self) -> Floats:
        """The profile in force, laid out as `EngineProfile.coefficients`."""
        row = self.declared.coefficients()
        if self.prefill.in_force:
            scale, constant, token, square, pair = self.prefill.theta.tolist()
            row[[pc.PREFILL_CONSTANT, pc.PREFILL_TOKEN, pc.PREFILL_SQUARE, pc.PREFILL_PAIR]] *= scale
            row[[pc.PREFILL_CONSTANT, pc.PREFILL_TOKEN, pc.PREFILL_SQUARE, pc.PREFILL_PAIR]] += (constant, token, square, pair)
            for knot in range(pc.FIRST_KNOT, pc.FIRST_KNOT + 2 * int(row[pc.KNOT_COUNT]), 2):
                x = row[knot]
                row[knot + 1] = scale * row[knot + 1] + constant + (token + square * x) * x
        if self.decode.in_force:
            scale, constant, stream, token = self.decode.theta.tolist()
            row[pc.DECODE_FLOOR] *= scale
            for piece in (pc.DECODE_SMALL, pc.DECODE_LARGE):
                row[piece : piece + 4] = row[piece : piece + 4] * scale + (constant, stream, token, 0.0)
        return row

    def _prefill_features(self, passes: Sequence[tuple[float, float]]) -> tuple[float, ...]:
        seconds = tokens = squares = pairs = 0.0
        for new, held in passes:
            seconds += self.declared.prefill_s(int(new)) + self.declared.prefill_per_cached_pair_s * held
            tokens, squares, pairs = tokens + new, squares + new * new, pairs + held
        return seconds, float(len(passes)), tokens, squares, pairs

    def _decode_features(self, steps: int, streams: float, context_tokens: float) -> tuple[float, ...]:
        cap = self.declared.decode_context_cap_tokens
        context = min(context_tokens, cap) if cap else context_tokens
        return steps * self.declared.decode_s(max(1, round(streams)), context), float(steps), steps * streams, steps * context


def _quantile(values: Floats, share: float) -> float:
    """The split-conformal quantile: of n values, the ⌈share·(n + 1)⌉-th smallest."""
    rank = min(len(values) - 1, int(np.ceil(share * (len(values) + 1))) - 1)
    return float(np.partition(values, rank)[rank])
