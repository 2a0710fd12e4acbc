"""Endpoints from the registry: a real Redis, scripted workers registered in it, and what goes to them."""

import msgspec
import numpy as np
from penstock_core.endpoint import Load, Role, WorkerRecord
from penstock_core.kv_events import KvBatch, KvState, encode_state
from penstock_core.profile import DEFAULT_PROFILE
from penstock_core.prompt import canonical_chat, chunk_keys, start_bytes
from penstock_dataplane.client import Origin
from penstock_kvindex.redis import RedisIndex
from penstock_router.app import Router
from penstock_router.config import RouterConfig, Secrets, ServedModel
from penstock_router.keys import Tenant, tenant_salt

from tests.router.conftest import whole

SECRETS = Secrets(chunk_secret=99, fleet_token="fleet")


def record(upstream, model, **fields):
    """What a worker in front of this upstream registers."""
    plain = {"role": Role.BOTH, "pool": "p", "epoch": 1, "kv_total_tokens": 100_000, "block_tokens": 64, "max_model_tokens": 8192}
    return WorkerRecord(id=upstream.name, url=upstream.url, model=model, profile=DEFAULT_PROFILE, **{**plain, **fields})


async def start_router(world, url, model, **settings):
    """A router that follows one model."""
    config = RouterConfig(port=0, redis_url=url, models=(ServedModel(name=model),), **{"policy": "prefix-affinity", **settings})
    world.router = Router(config, SECRETS)
    world.origin = Origin("http", *await world.router.start())
    return world.router.directory.models[model]


def keys_of(text, salt=b""):
    """Chunk keys of a chat with one user message."""
    messages = msgspec.json.decode(msgspec.json.encode([{"role": "user", "content": text}]), type=list[dict[str, msgspec.Raw]])
    return chunk_keys(canonical_chat(messages), start_bytes(salt=salt), SECRETS.chunk_secret)


def test_workers_are_found_and_prompts_go_where_their_beginning_is_held(play, redis_url, unused_model):
    """Two workers, one of them holds the prompt: it gets the request, with the predicted hit in the explain header."""

    async def scenario(world):
        a, b = await world.upstream("a"), await world.upstream("b")
        index = RedisIndex(redis_url, unused_model)
        try:
            await index.register(record(a, unused_model))
            lease = await index.register(record(b, unused_model))
            text = "the gate opens " * 200
            await index.publish(lease, KvBatch(1, 1, added=keys_of(text)))
            served = await start_router(world, redis_url, unused_model)
            await world.until(lambda: len(served.live) == 2 and served.chunks == len(keys_of(text)), "both and the chunks")
            for _ in range(3):
                answer = await world.chat(text + "?", model=unused_model, headers={"x-penstock-explain": "1"})
                said = dict(pair.split("=") for pair in answer.headers["x-penstock-placement"].split(";"))
                assert answer.text == "from b" and said["decode"] == "b" and int(said["hit_tokens"]) > 0
            assert all(seen.headers["x-penstock-token"] == "fleet" for seen in b.seen)
            await world.until(lambda: world.router.directory.ready, "ready")
        finally:
            await index.aclose()

    play(scenario)


def test_a_burst_of_siblings_lands_together_before_any_event_says_so(play, redis_url, unused_model):
    """Booked chunks count at once."""

    async def scenario(world):
        a, b = await world.upstream("a"), await world.upstream("b")
        index = RedisIndex(redis_url, unused_model)
        try:
            for one in (a, b):
                await index.register(record(one, unused_model))
            served = await start_router(world, redis_url, unused_model)
            await world.until(lambda: len(served.live) == 2, "both")
            texts = {(await world.chat("same beginning " * 100 + str(n), model=unused_model)).text for n in range(4)}
            assert len(texts) == 1
        finally:
            await index.aclose()

    play(scenario)


def test_isolated_tenants_salt_keys_and_tell_the_worker(play, redis_url, unused_model, tmp_path):
    """The salt goes to the worker with the fleet's token, and another tenant's chunks are not hits."""
    keys = tmp_path / "keys.yaml"
    keys.write_text("k1: {tenant: red, isolation: true}\nk2: {tenant: blue, isolation: true}\n")

    async def scenario(world):
        a = await world.upstream("a")
        index = RedisIndex(redis_url, unused_model)
        try:
            lease = await index.register(record(a, unused_model))
            text = "the gate opens " * 200
            salt = tenant_salt(Tenant("red", isolation=True), SECRETS.chunk_secret)
            await index.publish(lease, KvBatch(1, 1, added=keys_of(text, salt)))
            served = await start_router(world, redis_url, unused_model, api_keys=str(keys))
            await world.until(lambda: served.chunks > 0, "chunks")
            hits = []
            for key in ("k2", "k1"):
                headers = {"authorization": f"Bearer {key}", "x-penstock-explain": "1"}
                answer = await world.chat(text, model=unused_model, headers=headers)
                hits.append(dict(pair.split("=") for pair in answer.headers["x-penstock-placement"].split(";"))["hit_tokens"])
            assert hits[0] == "0" and int(hits[1]) > 0
            assert a.seen[1].headers["x-penstock-salt"] == salt.decode() != a.seen[0].headers["x-penstock-salt"]
            assert "cache_salt" not in a.seen[0].body
        finally:
            await index.aclose()

    play(scenario)


def test_redis_away_stops_nothing_and_a_dead_worker_still_goes(play, make_redis_server, unused_model):
    """Without Redis the workers stay as long as they answer; one that dies then is out after its probes."""

    async def scenario(world):
        server = make_redis_server()
        a, b = await world.upstream("a"), await world.upstream("b")
        index = RedisIndex(server.url, unused_model, lease_s=600.0)
        for one in (a, b):
            await index.register(record(one, unused_model))
        served = await start_router(world, server.url, unused_model, policy="round-robin")
        await world.until(lambda: len(served.live) == 2, "both")
        await index.aclose()
        server.close()
        following = world.router._sources[0]._following[unused_model]
        await world.until(lambda: not following.follower.available, "Redis is missed")
        assert [(await world.chat(model=unused_model)).status for _ in range(6)] == [200] * 6
        await b.stop()
        assert [(await world.chat(model=unused_model)).text for _ in range(4)] == ["from a"] * 4

    play(scenario)


def test_a_draining_worker_gets_nothing_new(play, redis_url, unused_model):
    """Its own word, renewed with the lease, is enough."""

    async def scenario(world):
        a, b = await world.upstream("a"), await world.upstream("b")
        index = RedisIndex(redis_url, unused_model)
        try:
            await index.register(record(a, unused_model))
            lease = await index.register(record(b, unused_model))
            await index.renew(lease, 1, Load(draining=True))
            served = await start_router(world, redis_url, unused_model, policy="round-robin")
            await world.until(lambda: len(served.live) == 2, "both")
            assert {(await world.chat(model=unused_model)).text for _ in range(4)} == {"from a"}
        finally:
            await index.aclose()

    play(scenario)


def test_what_a_worker_holds_is_asked_from_itself(play, redis_url, unused_model):
    """A worker that republishes is asked for its own list, with the fleet's token; the reload is counted."""

    async def scenario(world):
        a = await world.upstream("a")
        held = np.arange(1, 6, dtype=np.uint64)
        asked = []
        a.pages["/penstock/kv"] = lambda headers: asked.append(headers) or whole(200, encode_state(KvState(1, 7, held)))
        index = RedisIndex(redis_url, unused_model)
        try:
            served = await start_router(world, redis_url, unused_model)
            await world.until(lambda: served.index.warm, "warm")
            lease = await index.register(record(a, unused_model))
            await index.publish(lease, KvBatch(1, 1, added=held[:1]))
            await world.until(lambda: served.chunks == 1, "the first chunk")
            await index.republish(lease, KvState(1, 7, held[:2]))
            await world.until(lambda: served.chunks == 5, "its own five chunks, not the table's two")
            assert asked[0]["x-penstock-token"] == "fleet" and sum(served.reloads.values()) == 1
        finally:
            await index.aclose()

    play(scenario)
