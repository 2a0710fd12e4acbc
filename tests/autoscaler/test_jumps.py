"""What is kept ready for a jump of the rate, and where nothing is."""

import pytest
from loop_world import made
from penstock_autoscaler.demand import Mix
from penstock_autoscaler.jumps import insured, jumped
from penstock_autoscaler.observation import Observation, Target
from penstock_autoscaler.scaler import Scaler
from penstock_autoscaler.search import Bounds, Found
from penstock_autoscaler.settings import ScalerSettings
from penstock_autoscaler.trend import Count
from penstock_core.endpoint import Role
from penstock_core.slo import Slo

from tests.autoscaler.scaling_world import World, pool

SETTINGS = ScalerSettings()
SLO = Slo(3.0, 0.1)


def kept(size: int, rate: float, start_s: float = 120.0, most: int = 12, budget: int | None = None, quiet_s: float = 0.0) -> Found:
    """What is made of a size that the price asks for; a replica carries about 1.1 requests/s."""
    there = (pool(start_s=start_s, max_replicas=most),)
    bounds = Bounds(least={"both": 1}, most={"both": most}, accelerators={"both": 1}, budget=budget)
    means = Mix(rate=rate, prompt_tokens=4_000.0, hit_tokens=0.0, output_tokens=1_000.0)
    return insured(Found(sizes={"both": size}, attainment_ratio=0.97, met=True), means, there, SLO, bounds, SETTINGS, quiet_s)


def test_where_a_start_takes_long_a_jump_is_stood_with_what_is_there() -> None:
    """At 1.2 requests a second two replicas do; three are for a jump to 3 a second, and the third is said to be."""
    found = kept(2, 1.2)
    assert found.sizes == {"both": 3}
    assert found.spare == 1


@pytest.mark.parametrize("start_s", [0.0, 60.0])
def test_where_a_start_is_quick_nothing_is_kept(start_s: float) -> None:
    """A jump can be waited for there."""
    assert kept(2, 1.2, start_s).sizes == {"both": 2}


@pytest.mark.parametrize("size", [3, 4, 5])
def test_where_a_jump_takes_more_than_a_small_fleet_it_stands_a_part(size: int) -> None:
    """At 3 requests a second a jump takes seven, five are there: as many as the load says, however many the price happens to ask for."""
    assert kept(size, 3.0).sizes == {"both": SETTINGS.jump_fleet}


def test_a_larger_fleet_keeps_none() -> None:
    """At 5 requests a second a jump takes six replicas more, which cost more than the misses they save."""
    assert kept(6, 5.0) == Found(sizes={"both": 6}, attainment_ratio=0.97, met=True)


@pytest.mark.parametrize("size", [4, 8])
def test_the_longer_a_start_takes_the_more_are_kept(size: int) -> None:
    """All of the jump is missed until others have started. In fleets of every size, as long as bounds allow."""
    at_least = max(size, SETTINGS.jump_fleet)
    found = [kept(size, float(size), start_s).sizes["both"] for start_s in (100.0, 259.0, 260.0, 300.0, 460.0)]
    assert found == [at_least, at_least, at_least + 1, at_least + 1, at_least + 2]
    assert kept(8, 8.0, 460.0, most=9).sizes == {"both": 9}


def test_who_stands_the_whole_jump_keeps_no_more() -> None:
    """However long a start takes."""
    assert kept(2, 1.2, 900.0).sizes == {"both": 3}


def test_what_is_large_enough_for_a_jump_stays_as_it_is() -> None:
    """The price may ask for more than a jump does."""
    assert kept(6, 1.2) == Found(sizes={"both": 6}, attainment_ratio=0.97, met=True)


@pytest.mark.parametrize(("most", "budget"), [(4, None), (12, 4)])
def test_bounds_and_budget_come_first(most: int, budget: int | None) -> None:
    """As much of the jump is stood as they allow."""
    found = kept(3, 3.0, most=most, budget=budget)
    assert found.sizes == {"both": 4}
    assert found.spare == 1


@pytest.mark.parametrize(("rate", "prefill", "decode"), [(1.6, 2, 3), (3.0, 2, 3)])
def test_both_roles_are_insured_together(rate: float, prefill: int, decode: int) -> None:
    """What one role stands without the other is of no use: five stand all of a jump from 1.6 requests a second, and of one from 3 to 7.5
    as much as 4.5 in both."""
    roles = {"prefill": Role.PREFILL, "decode": Role.DECODE}
    there = tuple(pool(name, role, start_s=120.0) for name, role in roles.items())
    sizes = dict.fromkeys(roles, 1)
    bounds = Bounds(least=sizes, most=dict.fromkeys(roles, 12), accelerators=sizes)
    means = Mix(rate=rate, prompt_tokens=4_000.0, hit_tokens=0.0, output_tokens=1_000.0)
    found = insured(Found(sizes=sizes, attainment_ratio=None, met=True), means, there, SLO, bounds, SETTINGS, 0.0)
    assert found.sizes == {"prefill": prefill, "decode": decode}
    assert found.spare == prefill + decode - 2


def test_a_quiet_hour_with_long_starts_says_what_is_kept_for_a_jump() -> None:
    """In the message of every decision; the size is left alone."""
    world, quick = World(pool(start_s=120.0)), World(pool(start_s=60.0))
    for one in (world, quick):
        one.minutes(20, 1.2)
    assert world.size() == quick.size() + 1
    assert "1 kept for a jump" in world.decisions[-1].message
    assert "jump" not in quick.decisions[-1].message
    assert len({one.desired["both"] for one in world.decisions[20:]}) == 1


def test_after_an_hour_without_a_jump_nothing_is_kept_until_the_next_one() -> None:
    """Traffic that has not jumped for long is taken at its word; one jump, and another one is expected."""
    assert kept(2, 1.2, quiet_s=3_601.0).sizes == {"both": 2}
    world = World(pool(start_s=120.0))
    world.minutes(50, 1.2)
    insured_size = world.size()
    world.minutes(25, 1.2)
    assert world.size() == insured_size - 1
    assert "jump" not in world.decisions[-1].message
    world.minutes(4, 3.6)
    world.minutes(30, 1.2)
    assert world.size() == insured_size


@pytest.mark.parametrize(
    ("before", "lately", "seen"),
    [(60, 120, True), (60, 85, False), (6, 12, False), (0, 20, True), (600, 860, False), (600, 1_000, True)],
)
def test_a_jump_is_a_rise_that_noise_does_not_make(before: int, lately: int, seen: bool) -> None:
    """By half at least, within the time that a start takes."""
    counts = [Count(15.0 * (n + 1), 15.0, (before if n < 4 else lately) // 4) for n in range(16)]
    assert jumped(counts, 120.0) is False
    assert jumped(counts[:12], 120.0) is seen


def test_what_came_before_is_no_jump_where_it_is_not_known() -> None:
    """The first traffic of all."""
    assert not jumped([], 120.0)
    assert not jumped([Count(15.0 * (n + 1), 15.0, 100) for n in range(4)], 120.0)


def test_a_jump_that_nothing_was_decided_on_is_seen_too() -> None:
    """It came while the store was away, and was over before it was back."""
    scaler, there = Scaler(), (pool(start_s=120.0),)
    arrivals = [15] * 12 + [60] * 4 + [15] * 12
    windows = [made(15.0 * n, 15.0 * n + 15.0, many) for n, many in enumerate(arrivals)]
    now_s = windows[-1].until_s
    seen = Observation(now_s=now_s, target=Target(slo=SLO), pools=there, replicas=(), traffic=windows[-1], earlier=tuple(windows[:-1]))
    scaler.step(seen)
    assert scaler.memory.jumped_s is not None
    assert windows[15].until_s <= scaler.memory.jumped_s <= windows[18].until_s < now_s
