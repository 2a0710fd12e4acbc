"""Profiles: worked numbers of the published formulae, and the online fit that corrects them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_core import profile as columns
from penstock_core.profile import PROFILES, EngineProfile, profile_named
from penstock_core.profile_fit import LEAST_RESIDUALS, FittedProfile


@pytest.mark.parametrize(
    ("name", "tokens", "milliseconds"),
    [
        ("polynomial-reference", 1000, 4.209989e-7 * 1000**2 + 1.518344e-2 * 1000 + 16.50142),
        ("distserve-opt-13b-a100", 1000, 18.10 + 0.1019 * 1000 + 7.12e-6 * 1000**2),
        ("qwen3-32b-h100x2", 2048, 12 + 2048 / 20.48 + 2.0e-7 * 2048**2),
        ("splitwise-llama2-70b-a100", 1024, 154.62),
        ("splitwise-llama2-70b-a100", 1536, (154.62 + 274.16) / 2),
        ("splitwise-llama2-70b-a100", 16_384, 1544.36 + 2 * (1544.36 - 651.33)),
    ],
)
def test_prefill_seconds_are_the_published_ones(name: str, tokens: int, milliseconds: float) -> None:
    """The declared formula, or the interpolated measurement, in seconds."""
    assert PROFILES[name].prefill_s(tokens) == pytest.approx(milliseconds / 1e3, rel=1e-6)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_at_half_speed_every_pass_takes_twice_as_long(name: str) -> None:
    """Polynomials, knots and both decode pieces; what is no computing stays as it is."""
    profile = PROFILES[name]
    slow = profile.at_speed(0.5)
    for tokens in (1, 300, 5_000, 20_000):
        assert slow.prefill_s(tokens, 700) == pytest.approx(2 * profile.prefill_s(tokens, 700))
    for streams in (1, 94, 200):
        assert slow.decode_s(streams, streams * 900) == pytest.approx(2 * profile.decode_s(streams, streams * 900))
    assert (slow.kv_tokens, slow.transfer_bytes_per_s, slow.start_s) == (profile.kv_tokens, profile.transfer_bytes_per_s, profile.start_s)
    assert slow.name == f"{name}@0.5"


@pytest.mark.parametrize(
    ("name", "streams", "context", "milliseconds"),
    [
        ("polynomial-reference", 8, 0, 5.74),
        ("polynomial-reference", 8, 16_384 * 32, -25.74 * 0.25 + 54.01 * 0.5 + 5.74),
        ("polynomial-reference", 8, 10**9, -25.74 + 54.01 + 5.74),
        ("distserve-opt-13b-a100", 94, 1000, 19.93 + 0.627 + 0.0385 * 94),
        ("distserve-opt-13b-a100", 95, 1000, 7.17 + 0.580 + 0.158 * 95),
        ("splitwise-llama2-70b-h100", 10, 10_000, 29.9 + 2.23 + 1.62),
    ],
)
def test_decode_seconds_are_the_published_ones(name: str, streams: int, context: int, milliseconds: float) -> None:
    """Both pieces, the capacity cap and the quadratic form."""
    assert PROFILES[name].decode_s(streams, context) == pytest.approx(milliseconds / 1e3, rel=1e-6)


def test_nothing_to_do_takes_no_time() -> None:
    """No new tokens and no streams are free, constants included."""
    assert all(p.prefill_s(0) == 0 and p.decode_s(0, 0) == 0 for p in PROFILES.values())


def test_an_unknown_profile_is_named_with_what_is_allowed() -> None:
    """The error holds the value and the allowed names."""
    with pytest.raises(ValueError, match=r"'h200'.*polynomial-reference"):
        profile_named("h200")


@given(st.sampled_from(sorted(PROFILES)), st.integers(1, 300), st.integers(0, 10**6))
def test_the_coefficient_row_says_the_same_as_the_methods(name: str, streams: int, context: int) -> None:
    """What a kernel computes from the row is what `decode_s` gives."""
    profile, row = PROFILES[name], PROFILES[name].coefficients()
    assert row.shape == (columns.COEFFICIENTS,)
    first = columns.DECODE_LARGE if streams >= row[columns.DECODE_SPLIT] else columns.DECODE_SMALL
    constant, per_stream, per_token, squared = row[first : first + 4]
    capped = min(context, row[columns.DECODE_CAP])
    seconds = max(row[columns.DECODE_FLOOR], constant + per_stream * streams + (per_token + squared * capped) * capped)
    assert profile.decode_s(streams, context) == pytest.approx(seconds)


def slower(declared: EngineProfile, factor: float, samples: int) -> FittedProfile:
    """A fit that has seen an engine `factor` times as slow as declared, with 2 % of noise."""
    fit, rng = FittedProfile(declared), np.random.default_rng(5)
    for _ in range(samples):
        new, cached, streams = int(rng.integers(50, 8000)), int(rng.integers(0, 8000)), int(rng.integers(1, 60))
        context = int(streams * rng.integers(500, 4000))
        attention = 2 * new * cached * declared.prefill_per_token_squared_s  # new tokens attend to cached ones as well
        fit.observe_prefill(new, cached, factor * (declared.prefill_s(new) + attention) * rng.normal(1, 0.02))
        fit.observe_decode(streams, context, factor * declared.decode_s(streams, context) * rng.normal(1, 0.02))
    return fit


@pytest.mark.parametrize("name", ["distserve-opt-13b-a100", "qwen3-32b-h100x2", "polynomial-reference"])
def test_the_fit_learns_an_engine_half_as_fast_as_declared(name: str) -> None:
    """After enough samples the estimate follows what was observed, not what was declared."""
    declared = PROFILES[name]
    fit = slower(declared, 2.0, 4 * LEAST_RESIDUALS)
    for tokens in (500, 2000, 6000):
        assert fit.prefill_s(tokens, 0) == pytest.approx(2 * declared.prefill_s(tokens, 0), rel=0.1)
    assert fit.decode_s(20, 40_000) == pytest.approx(2 * declared.decode_s(20, 40_000), rel=0.15)


def test_too_few_samples_leave_the_declared_profile() -> None:
    """A guess from a handful of samples is not used."""
    declared = PROFILES["qwen3-32b-h100x2"]
    assert slower(declared, 2.0, LEAST_RESIDUALS // 2).prefill_s(1000) == declared.prefill_s(1000)


def test_features_never_seen_leave_the_declared_profile() -> None:
    """No extrapolation far beyond what was observed."""
    declared = PROFILES["qwen3-32b-h100x2"]
    fit = slower(declared, 2.0, 4 * LEAST_RESIDUALS)
    assert fit.prefill_s(100_000) == declared.prefill_s(100_000)


def test_wild_measurements_leave_the_declared_profile() -> None:
    """Where the interval is wider than 30 % of the estimate the fit is not trusted."""
    declared, rng = PROFILES["qwen3-32b-h100x2"], np.random.default_rng(1)
    fit = FittedProfile(declared)
    for _ in range(4 * LEAST_RESIDUALS):
        fit.observe_prefill(1000, 0, declared.prefill_s(1000) * float(rng.choice([0.2, 3.0])))
    assert fit.prefill_s(1000) == declared.prefill_s(1000)


def test_absurd_measurements_are_passed_over() -> None:
    """Not finite or not positive durations teach nothing and break nothing."""
    declared = PROFILES["qwen3-32b-h100x2"]
    fit = slower(declared, 1.0, 4 * LEAST_RESIDUALS)
    for seconds in (float("nan"), float("inf"), -1.0, 0.0):
        fit.observe_prefill(1000, 0, seconds)
    assert fit.prefill_s(1000) == pytest.approx(declared.prefill_s(1000), rel=0.1)
