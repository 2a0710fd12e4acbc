"""The online fit that corrects a declared profile: when it is used, when it is not, and how it comes back."""

import numpy as np
import pytest
from penstock_core import profile as pc
from penstock_core.profile import PROFILES, EngineProfile
from penstock_core.profile_fit import LEAST_RESIDUALS, LEAST_WHERE_WRONG, FittedProfile, Passes


def prefill(engine: EngineProfile, rng: np.random.Generator, factor: float, noise: float, most: int = 8_000) -> Passes:
    """A pass with prompts alone."""
    new, cached = float(rng.integers(50, most)), float(rng.integers(0, 8_000))
    seconds = engine.prefill_s(int(new)) + engine.prefill_per_cached_pair_s * new * cached
    return Passes(((new, new * cached),), 0, 0.0, 0.0, factor * seconds * rng.normal(1.0, noise))


def decode(engine: EngineProfile, rng: np.random.Generator, factor: float, noise: float) -> Passes:
    """A run of decode steps."""
    streams, steps = int(rng.integers(1, 60)), int(rng.integers(4, 40))
    context = streams * float(rng.integers(500, 4_000))
    return Passes((), steps, float(streams), context, steps * factor * engine.decode_s(streams, context) * rng.normal(1.0, noise))


def feed(fit: FittedProfile, samples: int, factor: float, noise: float = 0.02, seed: int = 5, engine: EngineProfile | None = None) -> None:
    """Batches of 32 of each, of `engine` (None: the declared one) at `factor` times its seconds."""
    rng, engine = np.random.default_rng(seed), engine or fit.declared
    for _ in range(0, samples, 32):
        fit.learn([make(engine, rng, factor, noise) for _ in range(32) for make in (prefill, decode)])


def row_prefill_s(row: np.ndarray, tokens: float, cached: float = 0.0) -> float:
    """As the kernel computes it from a row without knots."""
    return float(row[0] + (row[1] + row[2] * tokens + row[3] * cached) * tokens)


@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0])
@pytest.mark.parametrize("name", sorted(PROFILES))
def test_an_engine_of_another_speed_is_learned(name: str, factor: float) -> None:
    """Every declared profile, scaled: estimates and coefficients follow the engine within 3 %."""
    fit = FittedProfile(PROFILES[name])
    feed(fit, 4 * LEAST_RESIDUALS, factor)
    declared = fit.declared
    assert fit.prefill.in_force
    assert fit.decode.in_force
    for tokens in (200, 1_000, 6_000):
        assert fit.prefill_s(tokens) == pytest.approx(factor * declared.prefill_s(tokens), rel=0.03)
    for streams, context in ((1, 1_000), (20, 40_000), (60, 120_000)):
        assert fit.decode_s(streams, context) == pytest.approx(factor * declared.decode_s(streams, context), rel=0.03)


def test_an_engine_of_another_shape_is_learned() -> None:
    """Another constant, slope and curve, and a cost of cached tokens that was not declared at all."""
    declared = PROFILES["qwen3-32b-h100x2"]
    engine = PROFILES["distserve-opt-13b-a100"].at_speed(2.0)
    fit = FittedProfile(declared)
    feed(fit, 8 * LEAST_RESIDUALS, 1.0, engine=engine)
    row = fit.coefficients()
    for tokens in (300, 2_000, 7_000):
        assert fit.prefill_s(tokens) == pytest.approx(engine.prefill_s(tokens), rel=0.08)
        assert row_prefill_s(row, tokens) == pytest.approx(fit.prefill_s(tokens), rel=1e-9)


def test_too_few_samples_leave_the_declared_profile() -> None:
    """A guess from a handful of samples, or from some where what is declared is nearly right, is not used, and says why."""
    for samples, factor in ((LEAST_WHERE_WRONG - 16, 2.0), (LEAST_RESIDUALS - 40, 1.1)):
        fit = FittedProfile(PROFILES["qwen3-32b-h100x2"])
        feed(fit, samples, factor)
        assert not fit.prefill.in_force
        assert f"of {LEAST_RESIDUALS} samples" in fit.prefill.why
        assert np.array_equal(fit.coefficients(), fit.declared.coefficients())


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_what_is_plainly_wrong_is_left_after_a_few_samples(factor: float) -> None:
    """Half the declared seconds, or twice: an endpoint taken to be slow gets few requests to show that it is not."""
    fit = FittedProfile(PROFILES["qwen3-32b-h100x2"])
    feed(fit, LEAST_WHERE_WRONG + 16, factor)
    assert fit.prefill.in_force
    assert fit.decode.in_force
    assert fit.prefill_s(1_000) == pytest.approx(factor * fit.declared.prefill_s(1_000), rel=0.05)
    assert fit.decode_s(20, 40_000) == pytest.approx(factor * fit.declared.decode_s(20, 40_000), rel=0.05)


def test_a_declared_profile_that_is_right_stays() -> None:
    """What is declared is as good: it is not replaced by an estimate of itself."""
    fit = FittedProfile(PROFILES["qwen3-32b-h100x2"])
    feed(fit, 10 * LEAST_RESIDUALS, 1.0, noise=0.05)
    assert not fit.prefill.in_force
    assert not fit.decode.in_force
    assert "as good" in fit.decode.why


def test_wild_measurements_leave_the_declared_profile_and_calm_ones_bring_the_fit_back() -> None:
    """Where the interval is wider than 30 % of the estimate the fit is not trusted; it recovers by itself."""
    fit = FittedProfile(PROFILES["qwen3-32b-h100x2"])
    feed(fit, 4 * LEAST_RESIDUALS, 1.6)
    assert fit.prefill.in_force
    feed(fit, 2 * LEAST_RESIDUALS, 1.6, noise=0.25)
    assert not fit.prefill.in_force
    assert "interval" in fit.prefill.why
    assert fit.prefill_s(1_000) == fit.declared.prefill_s(1_000)
    feed(fit, 6 * LEAST_RESIDUALS, 1.6)
    assert fit.prefill.in_force
    assert fit.prefill_s(1_000) == pytest.approx(1.6 * fit.declared.prefill_s(1_000), rel=0.03)


def test_an_engine_that_changes_is_forgotten_and_learned_anew() -> None:
    """Twice as slow from one moment on: the declared profile takes over within 64 samples, the new fit after 200."""
    fit = FittedProfile(PROFILES["qwen3-32b-h100x2"])
    feed(fit, 4 * LEAST_RESIDUALS, 1.5)
    before = fit.decode.forgotten
    feed(fit, 64, 3.0, seed=6)
    assert fit.decode.forgotten > before
    assert not fit.decode.in_force
    feed(fit, 2 * LEAST_RESIDUALS, 3.0, seed=7)
    assert fit.decode.in_force
    assert fit.decode_s(20, 40_000) == pytest.approx(3.0 * fit.declared.decode_s(20, 40_000), rel=0.03)


def test_outliers_do_not_bend_the_fit() -> None:
    """One measurement in twenty takes five times as long."""
    declared, rng = PROFILES["qwen3-32b-h100x2"], np.random.default_rng(3)
    fit = FittedProfile(declared)
    for _ in range(40):
        seen = [prefill(declared, rng, 1.5, 0.02) for _ in range(32)]
        fit.learn([one._replace(seconds=one.seconds * (5.0 if rng.random() < 0.05 else 1.0)) for one in seen])
    assert fit.prefill.in_force
    for tokens in (500, 5_000):
        assert fit.prefill_s(tokens) == pytest.approx(1.5 * declared.prefill_s(tokens), rel=0.04)


def test_where_nothing_was_seen_the_declared_shape_holds_scaled() -> None:
    """Prompts of at most 600 tokens were seen: a pass of 8,000 is the declared one times what was learned, about."""
    declared, rng = PROFILES["qwen3-32b-h100x2"], np.random.default_rng(4)
    fit = FittedProfile(declared)
    for _ in range(40):
        fit.learn([prefill(declared, rng, 1.5, 0.05, most=600) for _ in range(32)])
    assert fit.prefill.in_force
    assert fit.prefill_s(8_000) == pytest.approx(1.5 * declared.prefill_s(8_000), rel=0.25)


def test_shared_and_mixed_passes_are_told_apart() -> None:
    """Sums over several passes, with decode steps in them, teach the same as each pass alone."""
    declared, rng = PROFILES["qwen3-32b-h100x2"], np.random.default_rng(8)
    fit = FittedProfile(declared)
    feed(fit, 2 * LEAST_RESIDUALS, 1.5)
    for _ in range(60):
        seen = []
        for _ in range(16):
            rest, streams = float(rng.integers(10, 8_000)), float(rng.integers(0, 40))
            context = 2_000.0 * streams
            passes = ((8_192.0 - streams, 0.0), (rest, 0.0))
            seconds = sum(declared.prefill_s(int(new)) for new, _ in passes) + 2 * declared.decode_s(int(streams), context)
            seen.append(Passes(passes, 2, streams, context, 1.5 * seconds))
        fit.learn(seen)
    assert fit.prefill.in_force
    assert fit.prefill_s(3_000) == pytest.approx(1.5 * declared.prefill_s(3_000), rel=0.03)


def test_absurd_measurements_are_passed_over() -> None:
    """Not finite or not positive durations teach nothing and break nothing."""
    fit = FittedProfile(PROFILES["qwen3-32b-h100x2"])
    feed(fit, 4 * LEAST_RESIDUALS, 1.5)
    samples = fit.prefill.samples
    for seconds in (float("nan"), float("inf"), -1.0, 0.0):
        fit.learn([Passes(((1_000.0, 0.0),), 0, 0.0, 0.0, seconds), Passes((), 4, 2.0, 100.0, seconds)])
    assert fit.prefill.samples == samples
    assert fit.coefficients()[pc.PREFILL_TOKEN] == pytest.approx(1.5 * fit.declared.prefill_per_token_s, rel=0.05)
