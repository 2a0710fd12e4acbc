"""Sizes found by replays: splits, mixes, and the autoscaler over a whole workload."""

import itertools

import numpy as np
import pytest
from penstock_autoscaler.mix import NoMix, Offer
from penstock_autoscaler.observation import Target
from penstock_core.endpoint import Role
from penstock_core.profile import DEFAULT_PROFILE
from penstock_core.slo import Slo
from penstock_simulator.cluster import replay
from penstock_simulator.dry_run import Asked, dry_run
from penstock_simulator.generate import Traffic, generate
from penstock_simulator.report import summarise
from penstock_simulator.setup import Setup
from penstock_simulator.sizing import GoalMissed, best_split, best_splits, busiest_rate, cheapest_checked, fleet

SLO = Slo(2.0, 0.05)
WORKLOAD = generate(Traffic(kind="poisson", requests=400, rate=16.0, prompt_tokens=3_000, output_tokens=150))


@pytest.mark.parametrize(("size", "summit"), [(size, summit) for size in (2, 3, 7) for summit in range(1, size)])
def test_the_walk_ends_on_the_summit_wherever_it_begins(size: int, summit: int) -> None:
    """And asks for no split twice."""
    for guess in (0, 1, size // 2, size):
        asked: list[tuple[int, int]] = []

        def attained(prefill: int, decode: int, asked: list[tuple[int, int]] = asked) -> float:
            asked.append((prefill, decode))
            return 1.0 - 0.1 * abs(prefill - summit)

        found = best_split(size, guess, attained)
        assert (found.prefill, found.decode) == (summit, size - summit)
        assert len(set(asked)) == len(asked)


def test_a_size_of_one_cannot_be_divided() -> None:
    """One of each role is the least."""
    with pytest.raises(ValueError, match="size is 1; allowed: 2 or more"):
        best_split(1, 1, lambda _p, _d: 1.0)


def test_splits_grow_until_the_goal_is_reached() -> None:
    """Long prompts and a tight goal: more prefill than decode, and no size beyond the first that does."""
    said: list[str] = []
    found = best_splits(WORKLOAD, DEFAULT_PROFILE, Slo(0.5, 0.05), 0.95, 8, said.append)
    assert [one.size for one in found] == list(range(2, len(found) + 2))
    assert all(one.attainment_ratio < 0.95 for one in found[:-1])
    assert found[-1].attainment_ratio >= 0.95
    assert found[-1].prefill >= found[-1].decode
    assert len(said) >= len(found)


def test_the_chosen_mix_reaches_the_goal_and_one_replica_less_of_a_type_would_not_be_chosen_for_nothing() -> None:
    """The replay of what it gives says the same; it costs no more than the programme's first guess of either type alone."""
    offers = [Offer(name="fast", profile=DEFAULT_PROFILE, price=4.0), Offer(name="slow", profile=DEFAULT_PROFILE.at_speed(0.5), price=1.5)]
    rate = busiest_rate(WORKLOAD, 300.0)
    found = cheapest_checked(WORKLOAD, offers, SLO, 0.95, rate, lambda _text: None)
    again = summarise(replay(WORKLOAD, Setup(workers=fleet(found.mix, offers), slo=SLO)))
    assert again.goodput_ratio == found.attainment_ratio >= 0.95
    assert found.mix.price == sum(found.mix.replicas[one.name] * one.price for one in offers)
    few = [Offer(name="slow", profile=DEFAULT_PROFILE.at_speed(0.5), price=1.5, most=1)]
    with pytest.raises((NoMix, GoalMissed)):
        cheapest_checked(WORKLOAD, few, Slo(0.5, 0.05), 0.95, rate, lambda _text: None)


def test_requests_that_no_type_serves_in_time_are_refused_unless_the_goal_allows_to_miss_them() -> None:
    """The share is said."""
    slow = [Offer(name="slow", profile=DEFAULT_PROFILE.at_speed(0.01), price=1.0)]
    with pytest.raises(NoMix, match=r"of the requests meet the targets on no offered type, even alone; allowed: 5\.0%"):
        cheapest_checked(WORKLOAD, slow, SLO, 0.95, 1.0, lambda _text: None)


def test_the_busiest_window_is_found() -> None:
    """Ten requests in one second among one a second."""
    made = generate(Traffic(kind="poisson", requests=110, rate=1.0, prompt_tokens=10, output_tokens=1))
    times = np.sort(np.append(np.arange(100.0), np.full(10, 50.5)))
    from msgspec.structs import replace

    assert busiest_rate(replace(made, arrival_s=times), 10.0) == pytest.approx(2.0)
    assert busiest_rate(replace(made, arrival_s=times), 1e6) == pytest.approx(110 / 99)


@pytest.mark.parametrize("first", [{Role.BOTH: 1}, {Role.PREFILL: 1, Role.DECODE: 1}])
def test_a_dry_run_follows_the_load_and_counts_every_request(first: dict[Role, int]) -> None:
    """It grows, all is served, and its minutes add up to the summary."""
    rising = generate(Traffic(kind="ramp", requests=900, rate=9.0, peak=4.0, prompt_tokens=3_000, output_tokens=150))
    asked = Asked(profile=DEFAULT_PROFILE, target=Target(slo=Slo(1.0, 0.02)), first=first, most=6, start_s=5.0, accelerators=2)
    done = dry_run(rising, asked)
    assert done.summary.outcomes == {"ok": 900}
    assert sum(one.arrivals for one in done.minutes) == 900
    assert sum(one.good for one in done.minutes) == round(done.summary.goodput_ratio * 900)
    assert done.accelerator_hours == pytest.approx(2 * done.summary.worker_s / 3_600.0)
    sizes = [sum(tick.decision.desired.values()) for tick in done.ticks]
    assert max(sizes) > sum(first.values())
    assert all(a.decision.at_s < b.decision.at_s for a, b in itertools.pairwise(done.ticks))


def test_a_fleet_outside_its_bounds_is_refused() -> None:
    """Field, value, what is allowed."""
    with pytest.raises(ValueError, match=r"replicas to begin with are \{'both': 9\}; allowed: 1\.\.6"):
        Asked(profile=DEFAULT_PROFILE, target=Target(slo=SLO), first={Role.BOTH: 9}, most=6, start_s=5.0)
