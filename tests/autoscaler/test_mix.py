"""The cheapest mix of accelerator types: the programme against brute force, and what a replica is taken to carry."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from penstock_autoscaler.capacity import meets, most_rate
from penstock_autoscaler.mix import NoMix, Offer, buckets, cheapest, loads
from penstock_core.profile import profile_named
from penstock_core.slo import Slo

PROFILE = profile_named("polynomial-reference")
SLO = Slo(2.0, 0.05)


def offers_at(*prices: float, most: int = 99) -> list[Offer]:
    return [Offer(name=f"type-{g}", profile=PROFILE, price=price, most=most) for g, price in enumerate(prices)]


def by_trying_all(full: NDArray[np.float64], offers: list[Offer], slices: int) -> float:
    """Every way to give every bucket's slices to the types."""
    ways = [way for way in itertools.product(range(slices + 1), repeat=len(offers)) if sum(way) == slices]
    best = math.inf
    for chosen in itertools.product(ways, repeat=len(full)):
        load = carried([tuple(one / slices for one in way) for way in chosen], full)
        if max(load) < math.inf:
            best = min(best, sum(math.ceil(one - 1e-7) * offer.price for one, offer in zip(load, offers, strict=True)))
    return best


def carried(shares: Sequence[Sequence[float]], full: NDArray[np.float64]) -> list[float]:
    """Replicas of each type that these shares of the buckets keep full."""
    return [sum(way[g] * row[g] for way, row in zip(shares, full, strict=True) if way[g]) for g in range(full.shape[1])]


@pytest.mark.parametrize("seed", range(24))
def test_it_costs_what_the_best_of_all_mixes_costs(seed: int) -> None:
    """Small cases, in some of which a type cannot serve a size at all."""
    rng = np.random.default_rng(seed)
    offers = offers_at(*rng.uniform(1.0, 5.0, 2 + seed % 2))
    full = rng.uniform(0.1, 3.0, (3, len(offers)))
    full[rng.random(full.shape) < 0.2] = np.inf
    full[:, 0] = np.where(np.isfinite(full).any(axis=1), full[:, 0], 1.0)
    found = cheapest(full, offers, slices=3)
    assert found.price == pytest.approx(by_trying_all(full, offers, 3))
    assert all(load <= found.replicas[offer.name] + 1e-6 for load, offer in zip(carried(found.assigned, full), offers, strict=True))
    assert all(sum(way) == pytest.approx(1.0) for way in found.assigned)


def test_a_size_that_no_type_serves_is_refused() -> None:
    """It says how many sizes, and of which offers."""
    with pytest.raises(NoMix, match="1 of 2 sizes of requests meet the targets on none of type-0, type-1"):
        cheapest(np.array([[1.0, 2.0], [np.inf, np.inf]]), offers_at(1.0, 2.0))


def test_more_than_there_is_to_be_had_is_refused() -> None:
    """Two replicas of each cannot carry five."""
    with pytest.raises(NoMix, match="no mix within 2 of type-0, 2 of type-1"):
        cheapest(np.array([[5.0, 5.0]]), offers_at(1.0, 1.0, most=2))


def test_scarce_cheap_replicas_are_filled_up_by_dear_ones() -> None:
    """Two of the cheap type, and the rest of the other."""
    scarce = [*offers_at(1.0, most=2), Offer(name="dear", profile=PROFILE, price=3.0)]
    assert cheapest(np.array([[4.0, 4.0]]), scarce).replicas == {"type-0": 2, "dear": 2}


def test_buckets_keep_the_rate_and_the_tokens() -> None:
    """Whatever the sizes, nothing is lost."""
    rng = np.random.default_rng(5)
    prompts, outputs = rng.integers(1, 60_000, 500), rng.integers(1, 2_000, 500)
    found = buckets(prompts, outputs, 12.0)
    assert 1 < len(found) < 500
    assert sum(one.rate for one in found) == pytest.approx(12.0)
    assert sum(one.rate * one.prompt_tokens for one in found) == pytest.approx(12.0 * prompts.mean())
    assert sum(one.rate * one.output_tokens for one in found) == pytest.approx(12.0 * outputs.mean())


def test_the_rate_of_a_replica_is_the_last_one_that_meets_the_targets() -> None:
    """A little less does, a little more does not; a faster engine and looser targets carry more."""
    rate = most_rate(PROFILE, 2_000, 300, SLO)
    assert meets(PROFILE, 2_000, 300, SLO, rate * 0.99)
    assert not meets(PROFILE, 2_000, 300, SLO, rate * 1.01)
    assert most_rate(PROFILE.at_speed(0.5), 2_000, 300, SLO) < 0.7 * rate
    assert most_rate(PROFILE, 2_000, 300, Slo(2.0, 0.02)) < rate


def test_what_cannot_be_met_even_alone_has_no_rate() -> None:
    """A prompt that computes longer than its target, and one that does not fit."""
    assert most_rate(PROFILE, 120_000, 10, Slo(1.0, 0.05)) == 0.0
    assert most_rate(PROFILE, PROFILE.kv_tokens, 10, Slo(9_000.0, 9_000.0)) == 0.0
    slow = Offer(name="slow", profile=PROFILE.at_speed(0.05), price=1.0)
    assert not np.isfinite(loads(buckets(np.array([60_000]), np.array([10]), 1.0), [slow], SLO)).any()
