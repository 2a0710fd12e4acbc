"""Profiles: worked numbers of the published formulae, the two forms of a profile."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_core import profile as columns
from penstock_core.profile import PROFILES, profile_named


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
def test_a_profile_takes_its_seconds_from_a_row(name: str) -> None:
    """Its own row gives itself, another speed's row that speed; what is no computing stays."""
    profile = PROFILES[name]
    assert profile.timed(profile.coefficients().tolist()) == profile
    slow = profile.timed(profile.at_speed(0.5).coefficients().tolist())
    assert slow == msgspec.structs.replace(profile.at_speed(0.5), name=name)


@pytest.mark.parametrize(
    ("column", "value"), [(columns.PREFILL_TOKEN, float("nan")), (columns.DECODE_SMALL, float("inf")), (columns.DECODE_FLOOR, float("inf"))]
)
def test_a_row_without_finite_seconds_is_refused(column: int, value: float) -> None:
    """So is one of another length."""
    row = profile_named("polynomial-reference").coefficients().tolist()
    with pytest.raises(ValueError, match="allowed: 34"):
        profile_named("polynomial-reference").timed(row[:-1])
    row[column] = value
    with pytest.raises(ValueError, match="not finite"):
        profile_named("polynomial-reference").timed(row)


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
