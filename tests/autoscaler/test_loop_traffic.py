"""What the loop hands to its brain: every interval once and by itself, whatever came between two decisions; a real Redis under it."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from loop_world import Obedient, World
from penstock_autoscaler.decision import Reason
from penstock_autoscaler.scaler import MEASURED_S, Scaler
from penstock_cli.redis_server import RedisServer
from penstock_core.profile import PROFILES
from penstock_core.profile_fit import PoolFit
from penstock_core.traffic import Window


def handed(brain: Obedient) -> list[Window]:
    """All intervals, in the order in which the brain got them."""
    return [one for seen in brain.seen for one in (*seen.earlier, seen.traffic) if one is not None]


def test_a_start_without_a_memory_sees_the_rate_of_now(redis_url: str, unused_model: str) -> None:
    """Ten minutes at 1 request/s and half a minute at 4: that is 4; what was late before the last minute is no news."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            now_s = np.floor(await world.windows.clock())
            await world.tell(now_s - 630.0, now_s - 90.0, 1.0, in_time=False)
            await world.tell(now_s - 90.0, now_s - 30.0, 1.0)
            await world.tell(now_s - 30.0, now_s, 4.0)
            brain = Scaler()
            told = await world.loop(brain, period_s=15.0).tick()
            assert told is not None
            assert told.decision.facts["rate_now"] == pytest.approx(4.0)
            assert [one.length_s for one in brain.memory.counts] == [15.0] * 42
            lately = [one.attainment for one in brain.memory.fared]
            assert sum(one.requests for one in lately) == (MEASURED_S - 30.0) * 1.0 + 30.0 * 4.0
            assert sum(one.both_met for one in lately) == sum(one.requests for one in lately)

    asyncio.run(story())


def test_a_store_that_was_away_over_a_step_hides_none(make_redis_server: Callable[[], RedisServer]) -> None:
    """Three minutes of windows at once, the rate doubling after two of them: the first decision afterwards is for the doubled rate."""

    async def story() -> None:
        server = make_redis_server()
        async with World(server.url, "m") as world:
            brain = Scaler()
            loop = world.loop(brain, period_s=15.0)
            now_s = np.floor(await world.windows.clock())
            await world.tell(now_s - 300.0, now_s - 180.0, 2.0)
            await loop.tick()
            with world.away(server.pid):
                told = await loop.tick()
                assert told is not None
                assert told.decision.reason is Reason.NO_DATA
            await world.tell(now_s - 180.0, now_s - 60.0, 2.0)
            await world.tell(now_s - 60.0, now_s, 4.0)
            told = await loop.tick()
            assert told is not None
            assert told.decision.facts["rate_now"] == pytest.approx(4.0)
            assert sum(one.arrivals for one in brain.memory.counts) == 240 * 2 + 60 * 4
            assert world.metric("penstock_autoscaler_requests_total") == 240 * 2 + 60 * 4

    asyncio.run(story())


def test_a_time_that_no_router_told_of_does_not_thin_out_what_came_before_and_after(redis_url: str, unused_model: str) -> None:
    """Routers could not tell for three minutes: what was known is still 2 requests/s, in however few seconds."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            now_s = np.floor(await world.windows.clock())
            brain = Scaler()
            loop = world.loop(brain, period_s=15.0)
            await world.tell(now_s - 300.0, now_s - 200.0, 2.0)
            await loop.tick()
            await world.tell(now_s - 200.0, now_s - 190.0, 2.0)
            await world.tell(now_s - 10.0, now_s, 2.0)
            told = await loop.tick()
            assert told is not None
            assert told.decision.facts["rate_now"] == pytest.approx(2.0)

    asyncio.run(story())


def test_a_decision_too_late_to_be_carried_out_was_made_of_traffic_that_is_not_decided_on_again(redis_url: str, unused_model: str) -> None:
    """The tick after its end goes on with what came since; intervals lie one after the other, and each is counted once."""

    async def story() -> None:
        async with World(redis_url, unused_model, both=1) as world:
            brain = Obedient({"both": 2})
            brain.thinking.set()
            loop = world.loop(brain, step_s=0.1)
            await world.publish(10, ended=(10, 0), endings=10)
            await world.publish(5, ended=(5, 0), endings=5)
            assert await loop.tick() is None
            await world.publish(20, ended=(20, 0), endings=20)
            assert await loop.tick() is None
            await world.publish(40, ended=(40, 0), endings=40)
            brain.thinking.clear()
            loop.times = world.loop(brain).times
            told = await loop.tick()
            assert told is not None
            assert world.fleet.carried_out == [told.decision]
            assert [one.arrivals for one in handed(brain)] == [10, 5, 20, 40]
            assert [one.since_s for one in handed(brain)[1:]] == [one.until_s for one in handed(brain)[:-1]]
            assert world.metric("penstock_autoscaler_requests_total") == 75

    asyncio.run(story())


def test_what_was_told_of_engines_in_an_earlier_interval_holds(redis_url: str, unused_model: str) -> None:
    """A router that was restarted since has measured nothing yet, which takes nothing back."""
    declared = PROFILES["polynomial-reference"]
    row = tuple(declared.at_speed(0.5).coefficients().tolist())

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            brain = Obedient()
            await world.publish(1, fits=(PoolFit(pool="both", declared=declared.name, row=row, samples=400, interval_ratio=0.1),))
            await world.publish(1)
            await world.loop(brain).tick()
            assert len(handed(brain)) == 2
            assert brain.seen[0].pools[0].profile.prefill_s(1_000) == pytest.approx(2.0 * declared.prefill_s(1_000))

    asyncio.run(story())


def test_a_failure_of_the_brain_hands_no_interval_in_twice(redis_url: str, unused_model: str) -> None:
    """It may have learned what it was given before it failed; the next decision goes on after that."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            brain = Obedient()
            brain.broken = True
            loop = world.loop(brain)
            await world.publish(10)
            with pytest.raises(ArithmeticError):
                await loop.tick()
            brain.broken = False
            await world.publish(20)
            assert await loop.tick() is not None
            assert [one.arrivals for one in handed(brain)] == [10, 20]

    asyncio.run(story())


def test_a_thought_that_lasts_over_a_change_of_the_lease_changes_nothing(redis_url: str, unused_model: str) -> None:
    """Another autoscaler decided meanwhile: its memory is taken over once the thought has ended, and no request counts twice."""

    async def story() -> None:
        async with World(redis_url, unused_model, both=1) as world:
            slow, quick = Obedient({"both": 2}), Obedient({"both": 5})
            one, other = world.loop(slow, step_s=0.1), world.loop(quick)
            slow.thinking.set()
            await world.publish(10)
            assert await one.tick() is None
            await one.lease.release()
            await world.publish(20)
            assert await other.tick() is not None
            await world.publish(30)
            assert await one.tick() is None
            await other.lease.release()
            assert await one.tick() is None
            assert slow.arrivals == 0
            slow.thinking.clear()
            slow.wanted = {"both": 7}
            one.times = other.times
            assert await one.tick() is not None
            assert (quick.arrivals, slow.arrivals) == (30, 60)
            assert [decision.desired["both"] for decision in world.fleet.carried_out] == [5, 7]

    asyncio.run(story())


def test_a_memory_that_could_not_be_kept_is_not_given_up_for_an_older_one(redis_url: str, unused_model: str) -> None:
    """The store refused it, then the lease ran out and nobody else took it: what was decided on meanwhile is not decided on again."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            brain = Obedient()
            loop = world.loop(brain)
            await world.publish(10, ended=(10, 0), endings=10)
            await loop.tick()
            brain.bulky = True
            await world.publish(20, ended=(20, 0), endings=20)
            await loop.tick()
            assert world.metric("penstock_autoscaler_failures_total", step="keep") == 1
            brain.bulky = False
            await loop.lease.release()
            loop._on_lease(False)
            await world.publish(40, ended=(40, 0), endings=40)
            await loop.tick()
            assert brain.arrivals == world.metric("penstock_autoscaler_requests_total") == 70

    asyncio.run(story())


def test_before_any_router_has_told_of_traffic_nothing_is_said(redis_url: str, unused_model: str) -> None:
    """Nothing came yet is no lack of data: the first word is that of the first window, asked for more often; silence is one in the end."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            loop = world.loop(Obedient(), period_s=15.0, asleep_s=0.5, quiet_s=120.0)
            assert await loop.tick() is None
            assert (await world.store.told(), loop._period_s) == ([], 0.5)
            await world.publish(0)
            told = await loop.tick()
            assert told is not None
            assert (told.decision.reason, loop._period_s) == (Reason.STEADY, 15.0)
            loop.times = world.loop(Obedient(), quiet_s=0.001).times
            async with asyncio.timeout(60):
                while told is None or told.decision.reason is not Reason.NO_DATA:
                    told = await loop.tick()

    asyncio.run(story())
