"""The learned distribution of output lengths."""

import math
from random import Random

import pytest
from penstock_router.columns import LONGEST_TOKENS, SHORTER, STATIONARY
from penstock_router.lengths import PRIOR_MEAN_TOKENS, OutputLengths


def test_the_prior_answers_before_anything_is_known():
    """Geometric with a mean of 256 tokens."""
    lengths = OutputLengths()
    assert lengths.expected_tokens() == pytest.approx(PRIOR_MEAN_TOKENS, abs=1.0)
    assert lengths.table[SHORTER, 1] == 0.0
    assert lengths.table[SHORTER, 257] == pytest.approx(1 - math.exp(-1), abs=0.002)


def test_many_completions_outweigh_the_prior():
    """4,000 answers of 40..60 tokens: F rises from 0 to 1 there."""
    lengths, rng = OutputLengths(), Random(1)
    for _ in range(4_000):
        lengths.observe(rng.randint(40, 60))
    below = lengths.table[SHORTER]
    assert below[40] < 0.01
    assert below[51] == pytest.approx(11 / 21, abs=0.03)
    assert below[61] > 0.99
    assert lengths.expected_tokens() == pytest.approx(50, abs=2)


def test_expectations_respect_max_tokens():
    """E min(length, most) by summing the survival function."""
    lengths = OutputLengths()
    below = lengths.table[SHORTER]
    for most in (0, 1, 17, 300, LONGEST_TOKENS, 10**9):
        exact = sum(1.0 - below[k] for k in range(1, min(most, LONGEST_TOKENS) + 1))
        assert lengths.expected_tokens(most) == math.ceil(exact)


def test_machine_code_fills_the_tables_bit_for_bit_as_numpy_does():
    """Simulated runs are the same with and without numba."""
    lengths, rng = OutputLengths(), Random(2)
    for _ in range(700):
        lengths.observe(round(rng.expovariate(1 / 150)) + 1)
    lengths.table[:], lengths._survival[1:] = 0.0, 0.0
    lengths._fill()
    filled = lengths.table.tobytes(), lengths._survival.tobytes()
    lengths.table[:], lengths._survival[1:] = 0.0, 0.0
    lengths._fill_by_rows()
    assert (lengths.table.tobytes(), lengths._survival.tobytes()) == filled


def test_the_stationary_form_is_the_plain_sum():
    """(1/mean)·Σ_{g<k}(F(k) − F(g)), term by term."""
    lengths = OutputLengths()
    for tokens in [3, 10, 10, 50, 9_000, 0, -5] * 10:
        lengths.observe(tokens)
    lengths.learn()
    below = lengths.table[SHORTER]
    mean = sum(1.0 - below[k] for k in range(1, LONGEST_TOKENS + 1))
    for k in (0, 1, 2, 11, 100, LONGEST_TOKENS):
        assert lengths.table[STATIONARY, k] == pytest.approx(sum(below[k] - below[g] for g in range(k)) / mean, rel=1e-9, abs=1e-12)


def test_old_completions_fade():
    """After a change of traffic the new lengths prevail within 10,000 completions."""
    lengths = OutputLengths()
    for tokens in [500] * 6_000 + [20] * 10_000:
        lengths.observe(tokens)
    assert lengths.expected_tokens() < 60
    assert 0.95 < lengths.table[SHORTER, 400] < 0.9999
