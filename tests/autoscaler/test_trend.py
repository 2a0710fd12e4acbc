"""What is read from counts of arrivals: levels, steps, slopes, and what is only noise."""

from collections.abc import Callable

import numpy as np
import pytest
from penstock_autoscaler.trend import Count, Trend, trend


def seen(rate: Callable[[float], float], until_s: float, seed: int = 0, period_s: float = 15.0) -> Trend:
    """Poisson counts of a rate that is a function of time, up to then."""
    rng = np.random.default_rng(seed)
    ends = np.arange(period_s, until_s + 0.1, period_s)
    return trend([Count(end, period_s, int(rng.poisson(rate(end - period_s / 2.0) * period_s))) for end in ends.tolist()])


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_averaged_over_while_nothing_changes(seed: int) -> None:
    """A quarter of an hour at one rate is one piece, a level."""
    found = seen(lambda _at: 4.0, 900.0, seed)
    assert found.slope == 0.0
    assert found.length_s > 800.0
    assert found.rate == pytest.approx(4.0, abs=3.0 * found.error + 0.05)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("after", [1.5, 8.0])
def test_a_step_is_taken_at_its_new_level_within_two_intervals(seed: int, after: float) -> None:
    """And is not taken for a slope."""
    found = seen(lambda at: 4.0 if at < 600.0 else after, 630.0, seed)
    assert found.slope == 0.0
    assert found.rate == pytest.approx(after, rel=0.35)


@pytest.mark.parametrize("seed", range(5))
def test_a_ramp_is_a_slope(seed: int) -> None:
    """Its present rate is that of the line, not of the mean."""
    found = seen(lambda at: 3.0 + at / 200.0, 900.0, seed)
    assert found.slope == pytest.approx(1.0 / 200.0, rel=0.35)
    assert found.rate == pytest.approx(7.5, rel=0.1)


def test_a_slope_counts_as_far_as_it_is_sure() -> None:
    """Of six noisy counts a line is seen where noise makes it steeper: on average its standard error makes up for that."""
    slopes = [seen(lambda at: 1.0 + at / 50.0, 90.0, seed).slope for seed in range(60)]
    found = [slope for slope in slopes if slope > 0.0]
    assert len(found) > 30
    assert float(np.mean(found)) < 1.0 / 50.0


def test_a_slope_is_told_interval_by_interval() -> None:
    """So that a sample of it can be evened: a mean alone would leave its end denser than its beginning."""
    found = seen(lambda at: 3.0 + at / 200.0, 900.0)
    told = dict(found.pieces)
    assert len(told) == 60
    assert [told[at] for at in (0.0, 450.0, 885.0)] == pytest.approx([3.0, 5.3, 7.5], rel=0.1)
    assert len(seen(lambda at: 4.0 if at < 600.0 else 8.0, 900.0).pieces) == 2


def test_bursts_are_noise_where_all_traffic_comes_in_bursts() -> None:
    """The variance of counts is learned from neighbours: what comes by twenties does not look like steps."""
    rng = np.random.default_rng(1)
    counts = [Count(15.0 * i, 15.0, 20 * int(rng.poisson(4.0))) for i in range(1, 61)]
    found = trend(counts)
    assert found.dispersion > 5.0
    assert found.length_s > 400.0


def test_no_counts_are_no_traffic() -> None:
    """Nor are counts of nothing."""
    assert trend([]).rate == trend([Count(15.0, 15.0, 0), Count(30.0, 15.0, 0)]).rate == 0.0
