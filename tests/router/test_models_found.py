"""Models that nobody told the router of: found in a real Redis when workers announce them, left when nobody does any more.

Their latency targets too: those of the ModelService as the operator writes them.
"""

import asyncio

from penstock_core.slo import DEFAULT_SLO, Slo
from penstock_dataplane.client import Origin
from penstock_kvindex.calls import connect
from penstock_kvindex.models import KEY, ServedModels
from penstock_kvindex.redis import RedisIndex
from penstock_router.app import Router
from penstock_router.config import GivenEndpoint, RouterConfig, ServedModel

from tests.router.conftest import waits_for
from tests.router.test_registered import SECRETS, record


async def start_router(world, url, **settings):
    """A router without a list of models."""
    world.router = Router(RouterConfig(port=0, redis_url=url, policy="prefix-affinity", **settings), SECRETS)
    world.origin = Origin("http", *await world.router.start())
    return world.router.directory


async def status(world, path):
    """What the router answers to a GET."""
    return (await world.send(path, method="GET")).status


def test_a_model_is_served_as_soon_as_a_worker_registers(play, make_redis_server):
    """The router was there first: not ready for clients, yet ready to say so; then it answers for the model."""

    async def scenario(world):
        url = make_redis_server().url
        directory = await start_router(world, url)
        assert directory.models == {} and directory.warm and not directory.ready
        assert await status(world, "/readyz") == 503
        assert await status(world, "/readyz?without_endpoints=true") == 200
        a = await world.upstream("a")
        index = RedisIndex(url, "late")
        try:
            await index.register(record(a, "late"))
            await world.until(lambda: directory.ready, "the model is found")
            assert (await world.chat("hello", model="late")).text == "from a"
            assert await status(world, "/readyz") == 200
        finally:
            await index.aclose()

    play(scenario)


def test_a_model_without_workers_is_left_once_nobody_announces_it(play, make_redis_server):
    """While it has workers it stays, whatever the list says; afterwards the list decides."""

    async def scenario(world):
        url = make_redis_server().url
        a, b = await world.upstream("a"), await world.upstream("b")
        index, later = RedisIndex(url, "short", lease_s=600), RedisIndex(url, "later", lease_s=600)
        redis = connect(url, 2.0)
        try:
            lease = await index.register(record(a, "short"))
            directory = await start_router(world, url)
            await world.until(lambda: directory.ready, "found")
            await redis.delete(KEY)
            await later.register(record(b, "later"))
            await world.until(lambda: "later" in directory.models, "a look after the deletion")
            assert "short" in directory.models
            await index.leave(lease, 1)
            await world.until(lambda: "short" not in directory.models, "left")
            assert (await world.chat("hello", model="short")).status == 404
        finally:
            for one in (index, later, redis):
                await one.aclose()

    play(scenario)


def test_without_redis_it_is_not_warm_and_says_so(play, tmp_path):
    """A router that does not know what there is must not take the place of one that does."""

    async def scenario(world):
        directory = await start_router(world, f"unix://{tmp_path}/nobody")
        assert not directory.warm
        assert await status(world, "/readyz?without_endpoints=true") == 503

    play(scenario)


def test_a_model_given_by_hand_is_not_taken_over(play, make_redis_server):
    """The same name in the registry is left out, once, and others are still found."""

    async def scenario(world):
        url = make_redis_server().url
        given, other = await world.upstream("given"), await world.upstream("other")
        clash, fine = RedisIndex(url, "same"), RedisIndex(url, "other")
        try:
            directory = await start_router(world, url, endpoints=(GivenEndpoint(url=given.url, model="same"),))
            await clash.register(record(other, "same"))
            await fine.register(record(other, "other"))
            await world.until(lambda: "other" in directory.models and directory.models["other"].live, "the other one")
            assert (await world.chat("hello", model="same")).text == "from given"
        finally:
            await clash.aclose()
            await fine.aclose()

    play(scenario)


def test_the_targets_of_the_model_service_hold_and_follow_it(play, make_redis_server):
    """Told, changed: requests that name none are judged by them without a restart; a header wins; a Redis emptied changes nothing."""

    async def scenario(world):
        url = make_redis_server().url
        index, later, models = RedisIndex(url, "late"), RedisIndex(url, "later"), ServedModels(url)
        a, gate = await world.upstream("a"), asyncio.Event()
        a.plan = [waits_for(gate)]
        try:
            await index.register(record(a, "late"))
            directory = await start_router(world, url, active_requests_per_model=1)
            await world.until(lambda: directory.ready, "found")
            served = directory.models["late"]
            assert served.slo == DEFAULT_SLO
            first = asyncio.ensure_future(world.chat("first", model="late"))
            await world.until(lambda: len(a.seen) == 1, "no room any more")
            for target_s in (0.2, 0.3):
                await models.set_targets({"late": Slo(target_s, 0.05), "other": Slo(9.0, 9.0)})
                await world.until(lambda target_s=target_s: served.slo == Slo(target_s, 0.05), "the router has read it")
                turned = await world.chat("second", model="late")
                assert turned.status == 429 and f"the TTFT target of {target_s} s" in turned.error["message"]
            turned = await world.chat("second", model="late", headers={"x-penstock-slo-ttft-ms": "100"})
            assert turned.status == 429 and "the TTFT target of 0.1 s" in turned.error["message"]
            await models.set_targets({})
            await later.register(record(a, "later"))
            await world.until(lambda: "later" in directory.models, "a look after that")
            assert served.slo == Slo(0.3, 0.05)
            gate.set()
            assert (await first).status == 200
        finally:
            for one in (index, later, models):
                await one.aclose()

    play(scenario)


def test_targets_in_the_routers_own_settings_win(play, make_redis_server):
    """Of two models listed by hand the one without targets gets those of its ModelService, the other keeps its own."""

    async def scenario(world):
        url = make_redis_server().url
        models = ServedModels(url)
        try:
            await models.set_targets({"own": Slo(0.2, 0.02), "open": Slo(0.2, 0.02)})
            listed = (ServedModel(name="own", slo=Slo(0.7, 0.07)), ServedModel(name="open"))
            directory = await start_router(world, url, models=listed)
            await world.until(lambda: directory.models["open"].slo == Slo(0.2, 0.02), "read")
            assert directory.models["own"].slo == Slo(0.7, 0.07)
        finally:
            await models.aclose()

    play(scenario)
