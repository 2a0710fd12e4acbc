"""What the autoscaler does in the course of a day, told on a made-up clock; without a what-if, so that sizes are the fluid bound's."""

import math
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from penstock_autoscaler.decision import Decision, Reason
from penstock_autoscaler.observation import Target
from penstock_autoscaler.ports import Answer
from penstock_autoscaler.sample import Sample
from penstock_autoscaler.settings import ScalerSettings
from penstock_core.endpoint import Role
from penstock_core.slo import Attainment, Slo

from tests.autoscaler.scaling_world import PERIOD_S, World, pool
from tests.autoscaler.test_fits import SLOW


def turns(decisions: list[Decision], name: str = "both") -> int:
    """How often the size changed its direction."""
    steps = np.sign(np.diff([one.desired[name] for one in decisions]))
    return int((np.diff(steps[steps != 0]) != 0).sum())


def test_a_burst_is_answered_at_once_and_by_as_many_as_it_needs() -> None:
    """One decision after the rate has risen from 1 to 8 requests a second, not one replica a decision."""
    world = World()
    world.minutes(5, 1.0)
    small = world.size()
    first = world.minutes(0.5, 8.0)
    assert first[0].reason is Reason.UP
    assert first[-1].desired["both"] >= 7 > 3 >= small
    assert "requests/s" in first[0].message


def test_after_the_burst_it_shrinks_once_the_pause_has_lasted_and_the_last_one_later() -> None:
    """Not before: what is given up would have to be started again. One replica more than would do stays for four times as long."""
    world = World(pool(desired=8))
    world.minutes(4, 8.0)
    high = world.size()
    held = world.minutes(0.75, 1.0)
    assert {one.desired["both"] for one in held} == {high}
    assert held[-1].reason is Reason.WAITING
    assert "not for long enough" in held[-1].message
    later = world.minutes(2.5, 1.0)
    assert Reason.DOWN in {one.reason for one in later}
    last = world.size()
    assert {one.desired["both"] for one in later} == {last}
    world.minutes(2, 1.0)
    assert world.size() == last - 1


def test_where_starts_are_quick_the_last_one_stays_for_five_minutes() -> None:
    """Traffic that goes back and forth within minutes is not followed with each wave there; where starts are long it leaves sooner."""
    quick, slow = World(pool(start_s=0.0)), World(pool(start_s=100.0))
    for world in (quick, slow):
        world.minutes(10, 6.1)
        assert world.size() == 6
        world.minutes(4.5, 4.6)
    assert (quick.size(), slow.size()) == (6, 5)
    quick.minutes(2, 4.6)
    assert quick.size() == 5


def test_a_ramp_is_met_before_it_arrives() -> None:
    """With a start of 300 s it asks for more than the present rate needs, as the rate will be when they are ready."""
    slow, instant = (World(pool(start_s=start_s)) for start_s in (300.0, 0.0))
    for minute in range(12):
        for world in (slow, instant):
            world.minutes(1, 1.0 + 0.5 * minute)
    assert slow.size() > instant.size()
    assert instant.size() == math.ceil(instant.size())


def test_at_night_it_goes_to_the_least_size_and_no_lower() -> None:
    """No requests are data: they mean that nobody needs anything."""
    world = World(pool(desired=6, min_replicas=2))
    world.minutes(10, 5.0)
    world.minutes(20, 0.0)
    assert world.size() == 2
    assert world.decisions[-1].valid


class NoTime:
    """A what-if that never comes to an answer."""

    def replay(self, *_: object) -> Answer:
        return Answer(None, 0.3)


class TimeForOne:
    """A what-if that answers the first question of a decision only: two replicas serve everybody, one serves nobody."""

    def replay(self, sizes: dict[str, int], _pools: object, asked: Sample, _slo: Slo, budget_s: float) -> Answer:
        good = asked.requests if sizes["both"] > 1 else 0
        return Answer(Attainment(asked.requests, good, asked.requests, good) if budget_s == 1.0 else None, 0.3)


def test_where_there_is_no_time_to_look_at_the_margin_one_more_is_kept_and_the_rest_leaves() -> None:
    """A slow machine must not hold a fleet of eight for traffic of which it knows that two do."""
    world = World(pool(desired=8), what_if=TimeForOne(), stable_s=90.0)
    world.minutes(15, 1.2)
    assert world.size() == 3


@pytest.mark.parametrize(("rate", "size"), [(0.05, 1), (0.5, 4)])
def test_too_few_requests_to_replay_are_no_reason_to_stay_large(rate: float, size: int) -> None:
    """Below 40 of them arithmetic decides; with more, what no replay had the time to look at is not given up."""
    world = World(pool(desired=4), what_if=NoTime(), stable_s=90.0)
    world.minutes(15, rate)
    assert world.size() == size


def test_a_pool_that_may_be_empty_is_emptied_after_long_idleness_and_filled_by_the_first_request() -> None:
    """Ten minutes without any; requests that wait at the router count as well as those that came."""
    world = World(pool(desired=2, min_replicas=0))
    world.minutes(5, 0.5)
    world.minutes(8, 0.0)
    assert world.size() == 1
    world.minutes(8, 0.0)
    assert world.size() == 0
    assert world.minutes(0.25, 0.0, waiting=1)[0].desired == {"both": 1}


def test_lost_metrics_change_nothing_and_say_so() -> None:
    """Half an hour of them, at the peak; and what comes after is judged anew, not against what was before."""
    world = World()
    world.minutes(8, 5.0)
    size = world.size()
    lost = world.minutes(30, None)
    assert {one.desired["both"] for one in lost} == {size}
    assert not any(one.valid for one in lost)
    assert {one.reason for one in lost} == {Reason.NO_DATA}
    after = world.minutes(1, 5.0)
    assert all(one.valid for one in after)
    assert {one.desired["both"] for one in after} == {size}


def test_a_replica_that_never_becomes_ready_is_named_and_not_counted_on() -> None:
    """After three times its usual start-up time, each period anew until somebody has replaced it."""
    world = World()
    world.minutes(5, 1.0)
    small = world.size()
    world.stuck = True
    world.minutes(4, 5.0)
    assert not any(one.late for one in world.decisions)
    late = [one for one in world.minutes(3, 5.0) if one.late]
    assert late
    assert set(late[0].late) == {f"both-{n}" for n in range(small + 1, small + 1 + len(late[0].late))}
    world.stuck = False
    assert not any(one.late for one in world.minutes(8, 5.0)[-8:])


def test_a_load_that_flaps_does_not_make_the_fleet_flap() -> None:
    """One minute at 2, one at 6 requests a second, for half an hour: the larger size stays."""
    world = World(pool(desired=2))
    for _ in range(15):
        world.minutes(1, 2.0)
        world.minutes(1, 6.0)
    assert turns(world.decisions) <= 1
    assert world.size() >= 6


def test_bounds_hold_and_what_is_missing_is_said() -> None:
    """More than the most is not asked for; the reason is that it is limited."""
    world = World(pool(max_replicas=4))
    last = world.minutes(6, 10.0)[-1]
    assert last.desired == {"both": 4}
    assert last.reason is Reason.LIMITED


def test_a_budget_of_accelerators_holds_over_all_pools() -> None:
    """Eight accelerators, two a replica."""
    world = World(
        pool("prefill", Role.PREFILL, accelerators=2),
        pool("decode", Role.DECODE, accelerators=2),
        target=Target(slo=Slo(3.0, 0.1), attainment_ratio=0.95, most_accelerators=8),
    )
    for decision in world.minutes(6, 12.0):
        assert sum(2 * size for size in decision.desired.values()) <= 8
    assert world.decisions[-1].reason is Reason.LIMITED
    assert min(world.decisions[-1].desired.values()) >= 1


def test_a_paused_model_is_watched_and_not_changed() -> None:
    """And scaled at once when the pause is over, from what was seen meanwhile."""
    world = World()
    paused = world.minutes(6, 6.0, paused="by a person")
    assert {one.desired["both"] for one in paused} == {1}
    assert {one.reason for one in paused} == {Reason.PAUSED}
    assert "by a person" in paused[0].message
    assert world.minutes(0.25, 6.0)[0].desired["both"] >= 5


def test_a_pool_that_somebody_else_sizes_is_taken_as_it_is() -> None:
    """All pools: overridden. One of two: the other one is still sized."""
    world = World()
    held = world.minutes(3, 6.0, overridden={"both": "an HPA"})
    assert {one.reason for one in held} == {Reason.OVERRIDDEN}
    assert "an HPA" in held[0].message
    both = World(pool("prefill", Role.PREFILL), pool("decode", Role.DECODE))
    both.minutes(4, 6.0, overridden={"prefill": "a person"})
    assert both.size("prefill") == 1
    assert both.size("decode") > 1


def test_an_idle_prefill_replica_becomes_a_decode_one_instead_of_a_start() -> None:
    """Long prompts with short answers turn into the reverse: the ratio follows within three decisions, the sum does not grow first."""
    world = World(pool("prefill", Role.PREFILL, desired=1, can_switch=True), pool("decode", Role.DECODE, desired=1, can_switch=True))
    world.prompt_tokens, world.output_tokens = 8_000, 20
    world.minutes(15, 6.0)
    before = dict(world.decisions[-1].desired)
    world.prompt_tokens, world.output_tokens = 500, 1_000
    made = world.minutes(5 * PERIOD_S / 60.0, 6.0)
    switched = [one for one in made if one.switches]
    assert switched
    assert switched[0].reason is Reason.SWITCH
    assert all(switch.pool == "decode" for one in switched for switch in one.switches)
    after = made[-1].desired
    assert after["decode"] > before["decode"]
    assert after["prefill"] < before["prefill"]


def test_targets_that_go_on_being_missed_overrule_the_arithmetic() -> None:
    """A profile that says twice the speed: one more at a time, as long as a fifth of the requests is late."""
    world = World(pool(desired=3))
    world.minutes(5, 2.5)
    before = world.size()
    made = world.minutes(12, 2.5, missed_ratio=0.2)
    assert world.size() > before
    assert all(after.desired["both"] - one.desired["both"] <= 1 for one, after in pairwise(made))
    grown = next(one for one in made if one.reason is Reason.UP)
    assert "one more than there are: 21% of the last minute's requests missed a target" in grown.message


class NineInTen:
    """A what-if in which no size helps the tenth request."""

    def replay(self, sizes: object, pools: object, asked: object, slo: object, budget_s: float) -> Answer:
        return Answer(Attainment(100, 90, 90, 90), 0.0)


def test_a_size_below_the_goal_says_why_it_is_enough() -> None:
    """Else 90 % at a goal of 95 % reads as a mistake."""
    world = World(pool(desired=3, start_s=10.0), what_if=NineInTen())
    message = world.minutes(5, 2.0)[-1].message
    assert "would meet 90.0%, and one more would bring too little" in message


def test_nothing_shrinks_while_targets_are_missed() -> None:
    """Whatever the arithmetic says of the smaller size."""
    world = World(pool(desired=6))
    made = world.minutes(10, 1.0, missed_ratio=0.15)
    assert min(one.desired["both"] for one in made) == 6


def test_misses_that_are_over_hardly_make_it_dearer_and_none_make_it_cheaper() -> None:
    """What a replica must be worth: a fifth less after an hour of many misses, two fifths more after one without."""
    fine, bad = World(), World()
    fine.minutes(60, 2.0)
    bad.minutes(60, 2.0, missed_ratio=0.5)
    usual = ScalerSettings().worth_factor * (1.0 - fine.target.attainment_ratio)
    assert fine.decisions[-1].facts["worth_ratio"] == pytest.approx(1.4 * usual)
    assert bad.decisions[-1].facts["worth_ratio"] == pytest.approx(0.8 * usual)


def test_corrections_begin_anew_when_the_engines_have_been_measured() -> None:
    """They were those of the declared profile."""
    world = World(pool())
    world.minutes(2, 1.0)
    world.scaler.memory.corrections = {"both": 3.0}
    world.minutes(1, 1.0)
    assert world.scaler.memory.corrections == {"both": 3.0}
    world.pools = {"both": msgspec.structs.replace(world.pools["both"], fit=SLOW)}
    world.minutes(1, 1.0)
    assert world.scaler.memory.corrections == {}


def test_a_failed_replica_changes_no_decision() -> None:
    """Its pool's desired size stands, so the actuator brings it back."""
    world = World(pool(desired=5))
    world.minutes(6, 4.5)
    size = world.size()
    world.replicas = world.replicas[1:]
    assert world.minutes(1, 4.5)[0].desired == {"both": size}


def test_a_restarted_autoscaler_goes_on_where_it_was() -> None:
    """From its bytes: the same decisions as one that never stopped."""
    first, second = World(), World()
    for world in (first, second):
        world.minutes(6, 3.0)
    second.scaler.restore(second.scaler.saved())
    assert first.minutes(4, 1.0) == second.minutes(4, 1.0)


@pytest.mark.parametrize("rate", [0.5, 3.0, 9.0])
def test_an_even_load_is_left_alone(rate: float) -> None:
    """After the first minutes no size changes any more."""
    world = World(pool(desired=4))
    world.minutes(8, rate)
    assert len({one.desired["both"] for one in world.minutes(30, rate)}) == 1
