"""A worker changes its role in place: what runs ends whole, the registry has it under the new role and epoch, with the cache it had."""

import asyncio
import contextlib

import httpx
import msgspec
import pytest
from penstock_core.endpoint import Role
from penstock_core.kv_events import decode_state
from penstock_dataplane.loop import run
from penstock_kvindex.redis import RedisIndex
from penstock_worker.assembly import build_host
from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.host import CannotSwitch
from penstock_worker.state import decode_worker_state

TOKEN = {"x-penstock-token": "fleet"}
WAIT_S = 60
DECODE = {"role": "decode", "pool": "d"}


@contextlib.asynccontextmanager
async def registered(redis_url, model, **settings):
    """A registered prefill worker, a client for it, and the index that it is in."""
    config = WorkerConfig(**{"id": "w", "model": model, "role": Role.PREFILL, "pool": "p", "speed": 20.0, **settings})
    host = build_host(config, WorkerSecrets(chunk_secret=5, fleet_token="fleet", redis_url=redis_url))
    index = RedisIndex(redis_url, model, timeout_s=30.0)
    await host.start()
    try:
        async with httpx.AsyncClient(base_url=host.url, timeout=WAIT_S, headers=TOKEN) as client:
            yield host, client, index
    finally:
        await host.stop()
        await index.aclose()


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def chat(model, text, **fields):
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 20, **fields}


def test_a_running_stream_ends_whole_and_then_the_role_changes(redis_url, unused_model):
    """New requests are refused meanwhile; afterwards the worker serves, registered with the new role under a new epoch."""

    async def story():
        async with registered(redis_url, unused_model, speed=1.0) as (host, client, index):
            epoch = host.epoch
            body = chat(unused_model, "go on", max_tokens=150, ignore_eos=True, stream=True)
            async with client.stream("POST", "/v1/chat/completions", json=body) as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                answer = await client.post("/penstock/role", json=DECODE)
                assert answer.status_code == 202
                state = decode_worker_state(answer.content)
                assert (state.draining, state.role) == (True, Role.PREFILL)
                refused = await client.post("/v1/chat/completions", json=chat(unused_model, "no"))
                assert (refused.status_code, refused.headers["x-penstock-refuse"]) == (503, "draining")
                rest = [line async for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert len(rest) > 100

            async def decodes():
                rows = (await index.registry()).rows
                return [(row.record.id, row.record.role, row.record.pool) for row in rows] == [("w", Role.DECODE, "d")]

            await until(decodes)
            (row,) = (await index.registry()).rows
            assert row.record.epoch == host.epoch != epoch
            state = decode_worker_state((await client.get("/penstock/state")).content)
            assert (state.draining, state.drained, state.role, state.pool) == (False, False, Role.DECODE, "d")
            assert (await client.post("/v1/chat/completions", json=chat(unused_model, "yes"))).status_code == 200

    run(story())


def test_the_cache_goes_over_to_the_new_role(redis_url, unused_model):
    """The index has the chunks of before under the new slot, and the engine hits them."""

    async def story():
        async with registered(redis_url, unused_model) as (host, client, index):
            text = "the water falls " * 400
            await client.post("/v1/chat/completions", json=chat(unused_model, text))
            host.switch(Role.DECODE, "d")

            async def switched():
                return not host.draining and host.config.role is Role.DECODE

            await until(switched)
            held = decode_state((await client.get("/penstock/kv")).content)
            assert held.epoch == host.epoch
            assert len(held.keys) > 20

            async def known():
                rows = {row.record.epoch: row.slot for row in (await index.registry()).rows}
                slot = rows.get(host.epoch)
                return slot is not None and all(slot in slots for slots in await index.holders(held.keys.tolist()))

            await until(known)
            again = await client.post("/v1/chat/completions", json=chat(unused_model, text))
            assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 1_000

    run(story())


def test_a_drain_wins_over_a_switch(redis_url, unused_model):
    """Told to leave while it waits to change its role, it leaves."""

    async def story():
        async with registered(redis_url, unused_model, speed=1.0) as (host, client, index):
            body = chat(unused_model, "go on", max_tokens=100, ignore_eos=True, stream=True)
            async with client.stream("POST", "/v1/chat/completions", json=body) as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                host.switch(Role.DECODE, "d")
                host.drain()
                with pytest.raises(CannotSwitch, match="draining"):
                    host.switch(Role.DECODE, "d")
                rest = [line async for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            await asyncio.wait_for(host.drained.wait(), WAIT_S)
            assert host.config.role is Role.PREFILL
            assert (await index.registry()).rows == ()
            assert (await client.post("/penstock/role", json=DECODE)).status_code == 409

    run(story())


def test_only_the_fleet_changes_roles(redis_url, unused_model):
    """Without its token 403; a role that there is not is named with those that there are; the same role again changes nothing."""

    async def story():
        async with registered(redis_url, unused_model) as (host, client, _):
            assert (await client.post("/penstock/role", json=DECODE, headers={"x-penstock-token": "no"})).status_code == 403
            for body in (
                b"",
                b"{}",
                msgspec.json.encode({"role": "cook", "pool": "d"}),
                msgspec.json.encode({"role": "both", "pool": "d" * 300}),
            ):
                answer = await client.post("/penstock/role", content=body)
                assert answer.status_code == 400
                assert "prefill, decode, both" in answer.json()["error"]["message"]
            epoch = host.epoch
            assert (await client.post("/penstock/role", json={"role": "prefill", "pool": "p"})).status_code == 202
            assert (host.epoch, host.draining) == (epoch, False)

    run(story())
