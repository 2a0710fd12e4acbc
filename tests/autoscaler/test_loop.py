"""The loop against a real Redis: what it carries out, what stops it, what it hands on to the next autoscaler."""

import asyncio
from collections.abc import Callable

import msgspec
from loop_world import Obedient, World
from penstock_autoscaler.decision import Reason
from penstock_autoscaler.knowledge import decode_saved
from penstock_autoscaler.observation import Start, Target
from penstock_autoscaler.settings import ScalerSettings
from penstock_autoscaler.told import decode_told
from penstock_cli.redis_server import RedisServer
from penstock_core.profile import PROFILES
from penstock_core.profile_fit import PoolFit
from penstock_core.slo import Slo


def test_a_decision_is_carried_out_shown_and_told(redis_url: str, unused_model: str) -> None:
    """Sizes change, users can see it, and the decision with the sizes it found is in Redis."""

    async def story() -> None:
        async with World(redis_url, unused_model, both=1) as world:
            await world.publish(7)
            told = await world.loop(Obedient({"both": 3})).tick()
            assert told is not None
            assert (told.decision.reason, told.decision.desired) == (Reason.UP, {"both": 3})
            assert world.fleet.desired == {"both": 3}
            assert world.fleet.shown == world.fleet.carried_out == [told.decision]
            assert decode_told(await world.store.told()) == [told]
            assert (told.pools[0].desired, told.pools[0].ready, told.trouble) == (1, 1, "")
            assert told.target == Target(slo=Slo())
            kept = await world.store.memory()
            assert kept is not None
            assert decode_saved(kept).settings == ScalerSettings()
            assert world.metric("penstock_autoscaler_desired_replicas", pool="both", role="both") == 3
            assert world.metric("penstock_autoscaler_leader") == world.metric("penstock_autoscaler_valid") == 1

    asyncio.run(story())


def test_requests_that_were_in_time_are_counted_once(redis_url: str, unused_model: str) -> None:
    """Those of a window that routers had to sample for all that it stands for; a tick without news counts nothing."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            loop = world.loop(Obedient())
            await world.publish(3, ended=(4, 1), endings=10)
            for _ in range(3):
                await loop.tick()
            assert world.metric("penstock_autoscaler_requests_total") == 10
            assert world.metric("penstock_autoscaler_requests_in_time_total") == 8

    asyncio.run(story())


def test_each_arrival_is_decided_on_once(redis_url: str, unused_model: str) -> None:
    """Whatever the tick and the windows, what the brain saw adds up; a tick without news is no data."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            brain = Obedient()
            loop = world.loop(brain)
            for arrivals in (5, 6, 7):
                await world.publish(arrivals)
                await loop.tick()
            quiet = await loop.tick()
            assert brain.arrivals == 18
            assert quiet is not None
            assert not quiet.decision.valid

    asyncio.run(story())


def test_windows_that_come_more_seldom_than_decisions_are_waited_for(redis_url: str, unused_model: str) -> None:
    """Until the next one is overdue, a tick without news decides nothing; then it says that there are no data."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            loop = world.loop(Obedient(), quiet_s=3_600.0)
            await world.publish(1)
            assert await loop.tick() is not None
            assert await loop.tick() is None
            loop.times = world.loop(Obedient(), quiet_s=0.001).times
            told = await loop.tick()
            assert told is not None
            assert told.decision.reason is Reason.NO_DATA

    asyncio.run(story())


def test_what_says_the_same_again_is_kept_once(redis_url: str, unused_model: str) -> None:
    """A run of steady decisions is one row with its number of times and its beginning."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            loop = world.loop(Obedient())
            for _ in range(3):
                await world.publish(1)
                await loop.tick()
            (row,) = decode_told(await world.store.told())
            assert row.times == 3
            assert row.first_s < row.decision.at_s

    asyncio.run(story())


def test_a_restarted_autoscaler_goes_on_with_its_history(redis_url: str, unused_model: str) -> None:
    """What the first one learned and how far it had read is the second one's, and so is the traffic of the time between."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            first = world.loop(Obedient())
            await world.publish(10)
            await first.tick()
            await first.lease.release()
            await world.publish(5)
            brain = Obedient()
            told = await world.loop(brain).tick()
            assert brain.arrivals == 15
            assert told is not None
            assert told.times == 2

    asyncio.run(story())


def test_pools_are_sized_by_what_routers_measured_of_their_engines(redis_url: str, unused_model: str) -> None:
    """From the window that says so, over a restart, until routers say that the declaration is as good; users see which it is."""
    declared = PROFILES["polynomial-reference"]
    row = tuple(declared.at_speed(0.5).coefficients().tolist())
    fit = PoolFit(pool="both", declared=declared.name, row=row, samples=400, interval_ratio=0.1, prefill_ratio=2.0, decode_ratio=2.0)

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            brain = Obedient()
            loop = world.loop(brain)
            await world.publish(1)
            await loop.tick()
            await world.publish(1, fits=(fit,))
            told = await loop.tick()
            assert [one.pools[0].profile.prefill_s(1_000) / declared.prefill_s(1_000) for one in brain.seen] == [1.0, 2.0]
            assert told is not None
            assert told.pools[0].fit == msgspec.structs.replace(fit, row=())
            assert world.metric("penstock_autoscaler_profile_fitted", pool="both") == 1
            assert decode_told(await world.store.told(1)) == [told]
            await loop.lease.release()
            brain = Obedient()
            loop = world.loop(brain)
            await world.publish(1)
            await loop.tick()
            await world.publish(1, fits=(msgspec.structs.replace(fit, row=()),))
            await loop.tick()
            assert [one.pools[0].profile.prefill_s(1_000) / declared.prefill_s(1_000) for one in brain.seen] == [2.0, 1.0]
            assert world.metric("penstock_autoscaler_profile_fitted", pool="both") == 0

    asyncio.run(story())


def test_a_pool_without_replicas_is_counted_on_to_start_as_it_did(redis_url: str, unused_model: str) -> None:
    """Scaled to zero, and the autoscaler restarted: what its replicas took is remembered, and shown."""
    start = Start(name="a", pull_s=12.0, engine_s=30.0)

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            brain = Obedient()
            loop = world.loop(brain)
            world.fleet.start = start
            await world.publish(1)
            await loop.tick()
            await loop.lease.release()
            world.fleet.desired = {"both": 0}
            await world.publish(1)
            told = await world.loop(brain).tick()
            assert [one.pools[0].start_s for one in brain.seen] == [42.0, 42.0]
            assert told is not None
            assert told.pools[0].start is not None
            assert (told.pools[0].start_s, told.pools[0].start.pull_s) == (42.0, 12.0)
            assert world.metric("penstock_autoscaler_start_phase_seconds", pool="both", phase="engine") == 30.0

    asyncio.run(story())


def test_a_memory_that_cannot_be_read_costs_the_history_only(redis_url: str, unused_model: str) -> None:
    """The autoscaler begins with the windows that are still there."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            await world.store.hold("old", 60.0)
            await world.store.keep("old", b"\xc1garbage", b"{}", again=False)
            await world.store.release("old")
            await world.publish(9)
            brain = Obedient()
            assert await world.loop(brain).tick() is not None
            assert brain.arrivals == 9

    asyncio.run(story())


def test_who_has_lost_the_lease_scales_no_more(redis_url: str, unused_model: str) -> None:
    """The second autoscaler acts, the first neither decides nor changes anything, until it gets the lease back with the memory."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            brains = Obedient({"both": 2}), Obedient({"both": 5})
            one, other = (world.loop(brain) for brain in brains)
            await world.publish(10)
            assert await one.tick() is not None
            assert await other.tick() is None
            await one.lease.release()
            await world.publish(20)
            assert await other.tick() is not None
            one.lease._until_s = asyncio.get_running_loop().time() + 60.0  # it still believes in it
            brains[0].wanted = {"both": 7}
            await world.publish(30)
            await one.lease.renew()
            assert await one.tick() is None
            assert world.fleet.desired == {"both": 5}
            await other.lease.release()
            assert await one.tick() is not None
            assert brains[0].arrivals == 60
            assert world.fleet.desired == {"both": 7}

    asyncio.run(story())


def test_a_lease_lost_while_deciding_is_noticed(redis_url: str, unused_model: str) -> None:
    """Redis refuses what the former holder wants to keep, and from then on it stands by."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            loop = world.loop(Obedient())
            await world.publish(1)
            await loop.tick()
            await world.store.release(loop.lease.who)
            await world.store.hold("another", 60.0)
            await world.publish(1)
            await loop.tick()
            assert not loop.lease.held
            assert await loop.tick() is None
            assert world.metric("penstock_autoscaler_leader") == 0

    asyncio.run(story())


def test_redis_away_changes_nothing_and_says_no_data(make_redis_server: Callable[[], RedisServer]) -> None:
    """While it is away decisions are invalid and the fleet stays; afterwards scaling goes on with what came meanwhile."""

    async def story() -> None:
        server = make_redis_server()
        async with World(server.url, "m") as world:
            brain = Obedient({"both": 4})
            loop = world.loop(brain)
            await world.publish(3)
            await loop.tick()
            assert world.fleet.desired == {"both": 4}
            brain.wanted = {"both": 8}
            with world.away(server.pid):
                loop.lease._until_s = 0.0  # it has run out, and cannot be renewed
                for _ in range(3):
                    told = await loop.tick()
                    assert told is not None
                    assert (told.decision.valid, told.decision.reason) == (False, Reason.NO_DATA)
                assert world.fleet.desired == {"both": 4}
                assert not loop.lease.held
            await world.publish(5)
            assert await loop.tick() is not None
            assert world.fleet.desired == {"both": 8}
            assert brain.arrivals == 8

    asyncio.run(story())


def test_a_fleet_that_cannot_be_seen_loses_no_traffic(redis_url: str, unused_model: str) -> None:
    """Nothing is decided while the actuator fails, and what arrived meanwhile is decided on afterwards."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            brain = Obedient()
            loop = world.loop(brain)
            world.fleet.broken = "the API server is away"
            await world.publish(4)
            assert await loop.tick() is None
            world.fleet.broken = ""
            assert await loop.tick() is not None
            assert brain.arrivals == 4
            assert world.metric("penstock_autoscaler_failures_total", step="look") == 1

    asyncio.run(story())


def test_a_long_decision_stops_neither_the_lease_nor_the_loop(redis_url: str, unused_model: str) -> None:
    """A what-if that computes on and on: the lease is renewed meanwhile, and a decision past its limit changes nothing."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            brain = Obedient({"both": 2})
            brain.thinking.set()
            loop = world.loop(brain, lease_s=3.0, step_s=0.2)
            renewing = asyncio.create_task(loop.lease.run())
            await world.publish(1)
            assert await loop.tick() is None
            assert await loop.tick() is None
            assert len(brain.seen) == 1
            renewals: set[float] = set()
            async with asyncio.timeout(60):
                while len(renewals) < 3:
                    await asyncio.sleep(0.01)
                    renewals.add(loop.lease._until_s)
            brain.thinking.clear()
            assert world.fleet.carried_out == []
            assert world.metric("penstock_autoscaler_failures_total", step="decide") == 2
            renewing.cancel()

    asyncio.run(story())


def test_it_runs_by_itself_and_gives_the_lease_back(redis_url: str, unused_model: str) -> None:
    """`run` ticks until cancelled, survives a tick that fails, and another autoscaler may act at once afterwards."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            brain = Obedient({"both": 3})
            brain.broken = True
            running = asyncio.create_task(world.loop(brain).run())
            await world.publish(1)
            async with asyncio.timeout(60):
                while not brain.seen:  # noqa: ASYNC110 -- seen from another thread
                    await asyncio.sleep(0.01)
                brain.broken = False
                while world.fleet.desired != {"both": 3}:
                    await world.publish(1)
                    await asyncio.sleep(0.02)
            running.cancel()
            await asyncio.wait((running,))
            assert await world.store.hold("next", 60.0)

    asyncio.run(story())


def test_routers_are_told_that_a_pool_may_be_woken(redis_url: str, unused_model: str) -> None:
    """Every period while a pool may be at 0, and not otherwise."""

    async def story() -> None:
        async with World(redis_url, unused_model) as world:
            said: list[int] = []

            async def wakeable() -> None:
                said.append(1)

            loop = world.loop(Obedient())
            loop._wakeable = wakeable
            for least, times in ((1, 0), (0, 1), (0, 2)):
                world.fleet.least = least
                await world.publish(1)
                await loop.tick()
                assert len(said) == times

    asyncio.run(story())
