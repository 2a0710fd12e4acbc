"""What holds of the autoscaler's decisions whatever it sees: any pools, any traffic, any replicas, any word of a replay."""

import msgspec
import numpy as np
import pytest
import scaling_world
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_autoscaler.decide import resize
from penstock_autoscaler.decision import Decision, Reason
from penstock_autoscaler.forecast import Season, forecast
from penstock_autoscaler.memory import Memory, Wanted, decode, encode
from penstock_autoscaler.observation import Observation, Phase, Pool, Replica, Target
from penstock_autoscaler.ports import Answer
from penstock_autoscaler.sample import sample
from penstock_autoscaler.scaler import Scaler
from penstock_autoscaler.search import Bounds, Goal, fewest
from penstock_autoscaler.settings import ScalerSettings
from penstock_autoscaler.split import switches
from penstock_autoscaler.trend import Count, trend
from penstock_core.endpoint import Role
from penstock_core.profile import PROFILES
from penstock_core.slo import Attainment, Slo
from window_strategies import windows

ROLES = ((Role.BOTH,), (Role.PREFILL, Role.DECODE), (Role.BOTH, Role.PREFILL, Role.DECODE))
PERIOD_S = 15.0


class AnyWord:
    """A what-if that says anything, but the same of the same sizes and requests."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def replay(self, sizes: dict[str, int], pools: object, asked: object, slo: object, budget_s: float) -> Answer:
        said = np.random.default_rng([self._seed, *sizes.values()])
        met = int(said.integers(0, 101))
        return Answer(
            None if said.random() < 0.2 else Attainment(100, int(said.integers(met, 101)), int(said.integers(met, 101)), met), 0.1
        )


@st.composite
def pools(draw: st.DrawFn) -> tuple[Pool, ...]:
    made = []
    for role in draw(st.sampled_from(ROLES)):
        least, more = draw(st.integers(0, 4)), draw(st.integers(0, 20))
        made.append(
            Pool(
                name=f"{role.value}-pool",
                role=role,
                desired=draw(st.integers(0, 30)),
                min_replicas=least,
                max_replicas=max(1, least + more),
                profile=draw(st.sampled_from(sorted(PROFILES.values(), key=lambda one: one.name))),
                start_s=draw(st.sampled_from([0.0, 1.0, 60.0, 600.0])),
                accelerators=draw(st.sampled_from([1, 2, 8])),
                can_switch=role is not Role.BOTH and draw(st.booleans()),
            )
        )
    return tuple(made)


@st.composite
def observations(draw: st.DrawFn, steps: int = 4) -> list[Observation]:
    """Successive ones of one model, whose replicas are in any state; its pools take no notice of what is decided."""
    there = draw(pools())
    budget = draw(st.none() | st.integers(1, 60))
    target = Target(
        slo=Slo(draw(st.sampled_from([0.2, 2.0])), draw(st.sampled_from([0.005, 0.05]))),
        attainment_ratio=draw(st.sampled_from([0.5, 0.95, 0.999])),
        most_accelerators=budget,
    )
    overridden = {pool.name: "somebody" for pool in there if draw(st.integers(0, 5)) == 0}
    seen, now_s = [], 0.0
    for _ in range(steps):
        now_s += PERIOD_S
        window = draw(windows(since_s=now_s - PERIOD_S, length_s=PERIOD_S, most=8))
        window = msgspec.structs.replace(window, arrivals=window.arrivals * draw(st.sampled_from([1, 1, 100, 100_000])))
        replicas = tuple(draw(_replica(pool, number, now_s)) for pool in there for number in range(min(3, pool.desired)))
        traffic = draw(st.sampled_from([window, window, window, None]))
        seen.append(Observation(now_s=now_s, target=target, pools=there, replicas=replicas, traffic=traffic, overridden=overridden))
    return seen


@st.composite
def _replica(draw: st.DrawFn, pool: Pool, number: int, now_s: float) -> Replica:
    phase, asked_s = draw(st.sampled_from(Phase)), now_s - draw(st.sampled_from([0.0, 50.0, 5_000.0]))
    return Replica(
        id=f"{pool.name}-{number}",
        pool=pool.name,
        role=pool.role,
        phase=phase,
        asked_s=asked_s,
        ready_s=None if phase is Phase.STARTING else asked_s,
        running=draw(st.integers(0, 300)),
        waiting=draw(st.integers(0, 300)),
    )


def scaler(word: int | None) -> Scaler:
    return Scaler(ScalerSettings(stable_s=20.0), None if word is None else AnyWord(word))


def allowed(seen: Observation, decision: Decision) -> None:
    """Whole sizes of every pool, within its bounds; within the budget, unless every pool has its least."""
    assert decision.desired.keys() == {pool.name for pool in seen.pools}
    spent, cheapest = 0, True
    for pool in seen.pools:
        size = decision.desired[pool.name]
        assert type(size) is int
        if pool.name in seen.overridden:
            assert size == pool.desired
        else:
            assert pool.min_replicas <= size <= pool.max_replicas
            cheapest &= size <= max(1, pool.min_replicas)
        spent += size * pool.accelerators
    assert seen.target.most_accelerators is None or spent <= seen.target.most_accelerators or cheapest


words = st.none() | st.integers(0, 99)


@settings(max_examples=150)
@given(observations(), words)
def test_sizes_are_whole_within_bounds_and_within_the_budget(seen: list[Observation], word: int | None) -> None:
    """In every valid decision; what is switched or late is among the replicas that were seen, and a switch stays within both pools."""
    brain = scaler(word)
    for one in seen:
        decision = brain.step(one)
        if decision.valid:
            if not all(pool.name in one.overridden for pool in one.pools):
                allowed(one, decision)
            ids = {replica.id: replica for replica in one.replicas}
            assert all(ids[late].phase is Phase.STARTING for late in decision.late)
            assert all(ids[switch.replica].phase is Phase.READY for switch in decision.switches)
            assert len({switch.replica for switch in decision.switches}) == len(decision.switches)
        assert np.isfinite(list(decision.facts.values())).all()


@given(st.data(), st.sampled_from([0.0, 0.0, 30.0, 1e6]))
def test_only_spare_replicas_switch_and_no_more_than_are_missing(data: st.DataObject, answer_s: float) -> None:
    """Each once, ready ones only, to a pool that is short, and never where a start is faster."""
    there = [msgspec.structs.replace(one, can_switch=data.draw(st.sampled_from([True, True, True, False]))) for one in data.draw(pools())]
    sizes = st.fixed_dictionaries({one.name: st.integers(0, 6) for one in there})
    here, wanted, spare = data.draw(sizes), data.draw(sizes), data.draw(sizes)
    replicas = [
        msgspec.structs.replace(data.draw(_replica(one, number, 100.0)), phase=data.draw(st.sampled_from([Phase.READY, *Phase])))
        for one in there
        for number in range(here[one.name])
    ]
    found = switches(here, wanted, spare, there, replicas, answer_s)
    by_id, by_name = {one.id: one for one in replicas}, {one.name: one for one in there}
    assert len({one.replica for one in found}) == len(found)
    for switch in found:
        giver, short = by_name[by_id[switch.replica].pool], by_name[switch.pool]
        assert by_id[switch.replica].phase is Phase.READY
        assert giver.can_switch
        assert short.can_switch
        assert switch.role is short.role is not giver.role
        assert giver.role is Role.PREFILL or answer_s < short.start_s
    for one in there:
        assert sum(by_id[switch.replica].pool == one.name for switch in found) <= spare[one.name]
        assert sum(switch.pool == one.name for switch in found) <= max(0, wanted[one.name] - here[one.name])


@settings(max_examples=40)
@given(observations(), words)
def test_no_data_changes_nothing(seen: list[Observation], word: int | None) -> None:
    """Neither the sizes nor what is remembered, and it is said to be no data."""
    brain = scaler(word)
    for one in seen:
        before = brain.saved()
        decision = brain.step(msgspec.structs.replace(one, traffic=None))
        assert not decision.valid
        assert decision.reason is Reason.NO_DATA
        assert decision.desired == {pool.name: pool.desired for pool in one.pools}
        assert (decision.switches, decision.late) == ((), ())
        assert brain.saved() == before
        brain.step(one)


@pytest.mark.parametrize("rate", [1.0, 3.0])
@pytest.mark.parametrize("roles", ROLES[:2])
def test_replicas_that_leave_are_not_counted_on(roles: tuple[Role, ...], rate: float) -> None:
    """However many of them there are, the same is decided as without: a load that doubles, answers that grow, a load that falls."""
    leaving = [
        Replica(id=f"leaving-{n}", pool=role.value, role=role, phase=Phase.DRAINING, asked_s=-900.0, ready_s=-800.0, running=0)
        for role in roles
        for n in range(4)
    ]
    decided = []
    for others in ([], leaving):
        world = scaling_world.World(*(scaling_world.pool(role.value, role, 3, can_switch=role is not Role.BOTH) for role in roles))
        step = world.scaler.step
        world.scaler.step = lambda seen, step=step, others=others: step(  # type: ignore[method-assign, misc]
            msgspec.structs.replace(seen, replicas=(*others, *seen.replicas))
        )
        for world.output_tokens, times in ((300, 1.0), (300, 2.0), (3_000, 0.5), (300, 0.2)):
            world.minutes(3, times * rate)
        decided.append(world.decisions)
    assert decided[0] == decided[1]


@settings(max_examples=40)
@given(observations(), words)
def test_paused_pools_stay_as_they_are(seen: list[Observation], word: int | None) -> None:
    """Whatever comes."""
    brain = scaler(word)
    for one in seen:
        decision = brain.step(msgspec.structs.replace(one, paused="for a test"))
        assert decision.desired == {pool.name: pool.desired for pool in one.pools}
        assert (decision.switches, decision.late) == ((), ())


@settings(max_examples=40)
@given(observations(), words, st.integers(0, 4))
def test_the_same_is_decided_again_and_after_a_restart(seen: list[Observation], word: int | None, restart: int) -> None:
    """Two brains that see the same say the same, though one of them was put away as bytes in between."""
    one, other = scaler(word), scaler(word)
    for number, observation in enumerate(seen):
        if number == restart:
            kept = other.saved()
            assert encode(decode(kept)) == kept
            other = scaler(word)
            other.restore(kept)
        assert one.step(observation) == other.step(observation)
    assert one.saved() == other.saved()


@settings(max_examples=40)
@given(observations(steps=6))
def test_what_is_remembered_comes_back_from_its_bytes(seen: list[Observation]) -> None:
    """Whatever was seen, the bytes of what they make are the same bytes."""
    memory = Memory()
    for one in seen:
        if one.traffic is not None:
            memory.add(one.traffic, ScalerSettings())
    kept = encode(memory)
    assert encode(decode(kept)) == kept


@given(pools(), st.data())
def test_a_size_within_bounds_stays_and_any_other_is_brought_in(there: tuple[Pool, ...], data: st.DataObject) -> None:
    """Bounds bring sizes in once and for all; what is needed is not cut for what is only held."""
    names = [pool.name for pool in there]
    bounds = Bounds(
        least={pool.name: pool.min_replicas for pool in there},
        most={pool.name: pool.max_replicas for pool in there},
        accelerators={pool.name: pool.accelerators for pool in there},
        budget=data.draw(st.none() | st.integers(1, 99)),
    )
    sizes = {name: data.draw(st.integers(0, 60)) for name in names}
    inside = bounds.within(sizes)
    assert bounds.within(inside) == inside
    assert not bounds.allow(sizes) or inside == sizes
    assert bounds.allow(inside) or inside == bounds.least
    wanted = [Wanted(at_s, {name: data.draw(st.integers(0, 60)) for name in names}) for at_s in (80.0, 95.0, 100.0)]
    resized = resize(there, inside, True, wanted, 100.0, ScalerSettings(stable_s=15.0), bounds)
    here = {pool.name: pool.desired for pool in there}
    assert all(resized.desired[name] >= size for name, size in inside.items() if size > here[name])


@given(pools(), st.data(), st.integers(0, 99))
def test_a_walk_ends_within_bounds_whatever_replays_say(there: tuple[Pool, ...], data: st.DataObject, word: int) -> None:
    """And it says that no more is wanted only of a size that was tried."""
    bounds = Bounds(
        least={pool.name: pool.min_replicas for pool in there},
        most={pool.name: pool.max_replicas for pool in there},
        accelerators={pool.name: pool.accelerators for pool in there},
    )
    goal = Goal(worth_ratio=data.draw(st.sampled_from([0.0, 0.05])))
    tried: dict[tuple[int, ...], Attainment | None] = {}

    def trial(sizes: dict[str, int]) -> Attainment | None:
        assert bounds.allow(sizes)
        found = AnyWord(word).replay(sizes, there, None, None, 1.0).attainment
        tried[tuple(sizes.values())] = found
        return found

    found = fewest({pool.name: data.draw(st.integers(0, 60)) for pool in there}, there, bounds, goal, trial)
    assert bounds.allow(found.sizes)
    seen = tried[tuple(found.sizes.values())]
    if found.met:
        assert seen is not None
        assert found.attainment_ratio == seen.goodput_ratio


@given(st.lists(st.tuples(st.sampled_from([1.0, 5.0, 15.0]), st.integers(0, 100_000)), max_size=60), st.floats(0.0, 1e4))
def test_a_forecast_is_a_rate_and_never_below_what_is_there(counts: list[tuple[float, int]], ahead_s: float) -> None:
    """Not negative, finite, and no higher than what a slope that has lasted so long can give."""
    at_s, made = 1e6, []
    for length_s, arrivals in counts:
        at_s += length_s
        made.append(Count(at_s, length_s, arrivals))
    found = trend(made)
    expected = forecast(found, Season(), at_s, ahead_s)
    assert np.isfinite([expected.now, expected.expected, expected.error]).all()
    assert 0.0 <= expected.now <= expected.expected


@given(st.lists(windows(), max_size=5), st.integers(1, 20))
def test_a_sample_is_of_requests_that_came(seen: list, most: int) -> None:
    """In order from 0 on, at most so many, each with an answer, and with no more hits than prompt."""
    contiguous, at_s = [], 0.0
    for one in seen:
        moved = one.arrival_s - one.since_s + at_s
        contiguous.append(msgspec.structs.replace(one, since_s=at_s, until_s=at_s + one.length_s, arrival_s=moved))
        at_s += one.length_s
    made = sample(contiguous, most)
    if made is None:
        return
    assert made.requests <= most
    assert made.arrival_s[0] == 0.0
    assert (np.diff(made.arrival_s) >= 0).all()
    assert (made.output_tokens >= 1).all()
    assert ((made.hit_tokens >= 0) & (made.hit_tokens <= made.prompt_tokens)).all()
