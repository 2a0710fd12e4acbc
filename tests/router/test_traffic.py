"""What routers tell autoscalers: every request once, as what it was, and all routers together; a real Redis under it."""

import asyncio
import math
import os
import signal
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_core.errors import Outcome
from penstock_core.profile_fit import Passes
from penstock_core.traffic import Window, joined
from penstock_dataplane.client import Origin
from penstock_kvindex.redis import RedisIndex
from penstock_kvindex.scaling import ScalingStore
from penstock_kvindex.windows import Windows
from penstock_router.app import Router
from penstock_router.config import RouterConfig, ServedModel
from penstock_router.tally import MOST_KEPT, Ending, Tally
from window_strategies import content

from tests.router.conftest import refuses
from tests.router.test_registered import SECRETS, record, start_router

WINDOW_S = 0.2


@asynccontextmanager
async def one_worker(world, redis_url, model, **settings):
    """A router that sees one registered worker: (its upstream, what is served, the reader of its windows, since when they count)."""
    upstream = await world.upstream("a")
    index, windows = RedisIndex(redis_url, model, lease_s=600.0), Windows(redis_url, model)
    try:
        since_s = await windows.clock()
        await index.register(record(upstream, model))
        served = await start_router(world, redis_url, model, **settings)
        await world.until(lambda: len(served.live) == 1, "the worker")
        yield upstream, served, windows, since_s
    finally:
        await index.aclose()
        await windows.aclose()


def ended(received_s: float, outcome: Outcome, **fields: float) -> Ending:
    plain = {"prompt_tokens": 100, "hit_tokens": 40, "output_tokens": 11, "placed_s": received_s + 0.5, "first_s": received_s + 1.0}
    return Ending(received_s=received_s, ended_s=received_s + 3.0, outcome=outcome, **{**plain, **fields})  # type: ignore[arg-type]


def test_a_window_counts_what_says_something_of_the_fleet() -> None:
    """Served, turned away and failed requests, and those whose clients waited in vain; not what clients got wrong or have no quota for."""
    tally = Tally()
    tally.endings += [
        ended(1.0, Outcome.OK),
        ended(2.0, Outcome.SHED, placed_s=0.0, first_s=0.0, output_tokens=0),
        ended(3.0, Outcome.UPSTREAM_FAILED, first_s=0.0),
        ended(4.0, Outcome.BAD_REQUEST, placed_s=0.0, first_s=0.0),
        ended(5.0, Outcome.CLIENT_GONE),
        ended(6.0, Outcome.CLIENT_GONE, first_s=0.0),
        ended(7.0, Outcome.OK, first_s=0.0),
        ended(8.0, Outcome.TENANT_OVER_QUOTA, placed_s=0.0, first_s=0.0, output_tokens=0),
    ]
    window = tally.cut(100.0, 110.0, 100.0, waiting=3, ttft_s=2.0)
    assert (window.endings, window.shed, window.failed, window.waiting) == (5, 1, 1, 3)
    np.testing.assert_allclose(window.ended.arrival_s, [101, 102, 103, 106, 107])
    np.testing.assert_array_equal(window.ended.ok, [True, False, False, False, True])
    np.testing.assert_allclose(window.ended.ttft_s, [1.0, math.nan, math.nan, math.nan, math.nan])
    np.testing.assert_allclose(window.ended.tpot_s, [0.2, math.nan, math.nan, math.nan, math.nan])
    assert window.queue_s == 5 * 0.5
    assert tally.endings == []


def test_what_comes_after_the_windows_end_is_the_next_ones() -> None:
    """Two cuts share out the arrivals, none twice and none lost."""
    tally = Tally()
    tally.arrivals += [(float(at), 10 + at) for at in range(10)]
    first, second = (tally.cut(*edges, 0.0, waiting=0, ttft_s=2.0) for edges in ((0.0, 4.0), (4.0, 20.0)))
    assert (first.arrivals, second.arrivals) == (4, 6)
    np.testing.assert_array_equal(first.prompt_tokens, [10, 11, 12, 13])
    np.testing.assert_array_equal(second.arrival_s, np.arange(4, 10))


def test_of_very_many_requests_an_even_sample_is_kept() -> None:
    """The counts stay those of all."""
    tally = Tally()
    tally.arrivals += [(at / 1_000, 5) for at in range(50_000)]
    tally.endings += [ended(at / 1_000, Outcome.OK) for at in range(50_000)]
    window = tally.cut(0.0, 50.0, 0.0, waiting=0, ttft_s=2.0)
    assert (window.arrivals, window.endings, len(window.arrival_s), len(window.ended.ok)) == (50_000, 50_000, MOST_KEPT, MOST_KEPT)
    assert np.diff(window.arrival_s).max() < 0.06


@given(
    st.lists(
        st.tuples(st.integers(0, 12).map(lambda n: 64 * n), st.integers(0, 99_999), st.booleans(), st.sampled_from(Outcome)), max_size=30
    ),
    st.data(),
)
def test_two_routers_windows_add_up_to_what_one_would_have_seen(requests, data):
    """However requests are dealt out to them: the same arrivals, endings and counts."""
    one, *two = (Tally() for _ in range(3))
    for ticks, prompt, ends, outcome in requests:
        received_s = ticks / 64
        for tally in (one, data.draw(st.sampled_from(two))):
            tally.arrivals.append((received_s, prompt))
            if ends:
                tally.endings.append(ended(received_s, outcome, prompt_tokens=prompt))
    edges = ((0.0, 5.0), (5.0, 20.0))
    whole, *parts = (joined([tally.cut(*edge, 0.0, waiting=0, ttft_s=2.0) for edge in edges]) for tally in (one, *two))
    assert content(joined(parts)) == content(whole)
    assert whole.arrivals == len(requests)


async def read_until(windows: Windows, since_s: float, arrivals: int, endings: int) -> Window:
    """Read on as an autoscaler does until so many have been told of; all that was read, as one."""
    read: list[Window] = []
    async with asyncio.timeout(50):
        while sum(one.arrivals for one in read) < arrivals or sum(one.endings for one in read) < endings:
            _, found = await windows.since(since_s, math.inf)
            for window in found:
                assert window.since_s >= since_s
                since_s = window.until_s
                read.append(window)
            await asyncio.sleep(WINDOW_S / 4)
    return joined(read)


def test_two_routers_add_up(play, redis_url, unused_model):
    """Each request is in the sum once, with its tokens and times; endings are found again by their arrival."""

    async def scenario(world):
        a = await world.upstream("a")
        index, windows = RedisIndex(redis_url, unused_model, lease_s=600.0), Windows(redis_url, unused_model)
        config = RouterConfig(port=0, redis_url=redis_url, models=(ServedModel(name=unused_model),), traffic_window_s=WINDOW_S)
        other = Router(config, SECRETS)
        try:
            since_s = await windows.clock()
            await index.register(record(a, unused_model))
            served = await start_router(world, redis_url, unused_model, traffic_window_s=WINDOW_S)
            origins = world.origin, Origin("http", *await other.start())
            theirs = other.directory.models[unused_model]
            await world.until(lambda: len(served.live) == len(theirs.live) == 1, "both see the worker")
            for n in range(9):
                world.origin = origins[n % 2]
                await world.chat("x" * 4_000, model=unused_model, stream=n % 3 > 0)
            whole = await read_until(windows, since_s, 9, 9)
            assert (whole.arrivals, whole.endings, whole.shed, whole.failed) == (9, 9, 0, 0)
            assert whole.ended.ok.all()
            np.testing.assert_array_equal(whole.ended.output_tokens, [3] * 9)
            assert sorted(whole.ended.arrival_s.tolist()) == whole.arrival_s.tolist()
            assert np.isnan(whole.ended.ttft_s).sum() == 3
            assert np.nanmin(whole.ended.ttft_s) >= 0
        finally:
            await other.close()
            await index.aclose()
            await windows.aclose()

    play(scenario)


def test_what_a_router_learned_of_engines_is_told_with_its_windows(play, redis_url, unused_model):
    """An autoscaler reads the profile that the router places by."""

    async def scenario(world):
        async with one_worker(world, redis_url, unused_model, traffic_window_s=WINDOW_S) as (_, served, windows, since_s):
            profiles, declared = served.scheduler.profiles, served.live[0].record.profile
            for batch in range(12):
                for i in range(32):
                    tokens = 50 + 29 * i
                    profiles.take(0, Passes(((float(tokens), 0.0),), 0, 0.0, 0.0, 3.0 * declared.prefill_s(tokens)))
                profiles.learn(float(batch + 1), True)
            told = ()
            async with asyncio.timeout(50):
                while not told:
                    _, found = await windows.since(since_s, math.inf)
                    told = found[-1].fits if found else ()
                    await asyncio.sleep(WINDOW_S / 4)
            assert [(fit.pool, fit.declared) for fit in told] == [(served.live[0].record.pool, declared.name)]
            assert declared.timed(told[0].row).prefill_s(700) == pytest.approx(3.0 * declared.prefill_s(700), rel=0.02)

    play(scenario)


def test_failures_are_told_and_a_closing_router_tells_its_rest(play, redis_url, unused_model):
    """What ended just before the router closed is told with its last window, which says that no more comes."""

    async def scenario(world):
        async with one_worker(world, redis_url, unused_model, traffic_window_s=10.0, queue_timeout_s=0.1) as (a, served, windows, since_s):
            a.behaviour = refuses("full")
            assert (await world.chat(model=unused_model)).status >= 500
            await world.router.close()
            _, (window,) = await windows.since(since_s, math.inf)
            assert (window.arrivals, window.endings, window.shed + window.failed) == (1, 1, 1)
            assert not window.ended.ok.any()
            assert served.tally is None

    play(scenario)


def test_what_a_tenant_asks_for_beyond_its_quota_is_no_demand(play, redis_url, unused_model, tmp_path):
    """More replicas would serve none of it: nothing arrives, nothing is shed."""
    keys = tmp_path / "keys.yaml"
    keys.write_text("sk-small: {tenant: small, tokens_per_minute: 40}\n")

    async def scenario(world):
        async with one_worker(world, redis_url, unused_model, traffic_window_s=10.0, api_keys=str(keys)) as (_, _, windows, since_s):
            headers = {"authorization": "Bearer sk-small"}
            statuses = [(await world.chat("x" * 400, model=unused_model, headers=headers)).status for _ in range(4)]
            assert statuses == [200, 429, 429, 429]
            await world.router.close()
            _, (window,) = await windows.since(since_s, math.inf)
            assert (window.arrivals, window.endings, window.shed) == (1, 1, 0)

    play(scenario)


def test_redis_away_costs_windows_and_nothing_else(play, make_redis_server, unused_model):
    """Requests go on, what is tallied meanwhile stays bounded, and after its return the windows go on."""

    async def scenario(world):
        server = make_redis_server()
        async with one_worker(world, server.url, unused_model, traffic_window_s=WINDOW_S) as (_, served, windows, _):
            await world.chat(model=unused_model)
            os.kill(server.pid, signal.SIGSTOP)
            publisher = world.router._sources[0]._following[unused_model].traffic
            statuses = []
            while not publisher._away:
                statuses.append((await world.chat(model=unused_model)).status)
            await world.until(lambda: served.tally.arrivals == [], "what was tallied is dropped")
            assert set(statuses) == {200}
            os.kill(server.pid, signal.SIGCONT)
            since_s = await windows.clock()
            await world.until(lambda: not publisher._away, "Redis is back")
            await world.chat(model=unused_model)
            assert (await read_until(windows, since_s, 1, 1)).arrivals >= 1

    play(scenario)


def test_a_router_tells_what_autoscalers_decided(play, make_redis_server, unused_model):
    """As it is kept in Redis, newest first, to those with the admin key; 503 while Redis is away; what is no JSON is left out."""

    async def scenario(world):
        server = make_redis_server()
        store = ScalingStore(server.url, unused_model)
        try:
            await store.hold("a", 600.0)
            for row in (b'{"n": 1}', b"no json", b'{"n": 2}'):
                await store.keep("a", b"", row, again=False)
            await start_router(world, server.url, unused_model)
            (model,) = (await world.send("/admin/scaling?limit=5", method="GET")).json["models"]
            assert (model["model"], model["decisions"]) == (unused_model, [{"n": 2}, {"n": 1}])
            assert model["now_s"] > 1.7e9
            server.stop()
            assert (await world.send("/admin/scaling", method="GET")).status == 503
        finally:
            await store.aclose()

    play(scenario)
