"""A prefill and a decode worker with a registry: KV handed over through the hosts' HTTP, chunks in Redis, refusals that name kv."""

import asyncio
import contextlib

import httpx
import msgspec
from penstock_core.endpoint import Role
from penstock_core.prompt import canonical_chat, chunk_keys, start_bytes
from penstock_dataplane.loop import run
from penstock_kvindex.redis import RedisIndex
from penstock_worker.assembly import build_host
from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.engines.sim import reference_text

WAIT_S = 60
ASK_PREFILL = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
PATH = "/v1/chat/completions"


@contextlib.asynccontextmanager
async def worker(role, redis_url="", **settings):
    told = {"id": f"{role.value}-0", "model": "m", "speed": 50.0, "kv_claim_seconds": 20.0, "drain_s": WAIT_S} | settings
    config = WorkerConfig(role=role, pool=role.value, **told)
    host = build_host(config, WorkerSecrets(chunk_secret=5, fleet_token="fleet", redis_url=redis_url))
    await host.start()
    try:
        async with httpx.AsyncClient(base_url=host.url, timeout=WAIT_S) as client:
            yield host, client
    finally:
        await host.stop()


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def chat(text, **fields):
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 20, **fields}


def test_a_prompt_prefilled_elsewhere_is_decoded_here():
    """The decode worker's text is the reference's, with the prefill worker's KV; a second claim is refused as kv, and prefills itself."""

    async def story():
        async with worker(Role.PREFILL) as (prefill, at_prefill), worker(Role.DECODE) as (decode, at_decode):
            body = chat("word " * 500)
            first = await at_prefill.post(
                PATH, json={**body, "max_tokens": 1, "kv_transfer_params": ASK_PREFILL}, headers={"x-request-id": "r1"}
            )
            handed = first.json()["kv_transfer_params"]
            assert handed["do_remote_prefill"]
            answer = await at_decode.post(PATH, json={**body, "kv_transfer_params": handed}, headers={"x-request-id": "r1"})
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["message"]["content"] == reference_text(msgspec.json.encode(body))
            again = await at_decode.post(PATH, json={**chat("other " * 500), "kv_transfer_params": handed}, headers={"x-request-id": "r2"})
            assert (again.status_code, again.headers["x-penstock-refuse"]) == (503, "kv")
            assert again.json()["error"]["code"] == "refused_kv"
            page = (await at_decode.get("/metrics")).text
            assert 'penstock_worker_refused_total{reason="kv"} 1.0' in page
            assert 'penstock_worker_kv_transferred_bytes_total{direction="pulled"}' in page
            assert decode._engine.handover().pulled_bytes == prefill._engine.handover().served_bytes > 0
            assert decode.load().running == prefill.load().running == 0

    run(story())


def test_kv_of_another_generation_is_refused_and_its_text_is_another():
    """The setting reaches the KV bytes: each generation answers in its own reference text, and neither takes the other's KV."""

    async def story():
        async with worker(Role.PREFILL, kv_generation="old") as (_, at_prefill), worker(Role.DECODE, kv_generation="new") as (_, at_decode):
            body = chat("word " * 500)
            first = await at_prefill.post(PATH, json={**body, "max_tokens": 1, "kv_transfer_params": ASK_PREFILL})
            handed = first.json()["kv_transfer_params"]
            refused = await at_decode.post(PATH, json={**body, "kv_transfer_params": handed})
            assert (refused.status_code, refused.headers["x-penstock-refuse"]) == (503, "kv")
            texts = [(await client.post(PATH, json=body)).json()["choices"][0]["message"]["content"] for client in (at_prefill, at_decode)]
            assert texts == [reference_text(msgspec.json.encode(body), kv_generation=name) for name in ("old", "new")]
            assert texts[0] != texts[1]

    run(story())


def test_a_draining_prefill_waits_for_kv_that_nobody_has_fetched_yet():
    """Drained only once the decode worker has the KV: scale-in of a prefill worker loses no hand-over."""

    async def story():
        async with worker(Role.PREFILL) as (prefill, at_prefill), worker(Role.DECODE) as (_, at_decode):
            body = chat("word " * 500)
            first = await at_prefill.post(
                PATH, json={**body, "max_tokens": 1, "kv_transfer_params": ASK_PREFILL}, headers={"x-request-id": "r1"}
            )
            prefill.drain()
            await asyncio.sleep(0)
            for _ in range(10):
                state = await at_prefill.get("/penstock/state", headers={"x-penstock-token": "fleet"})
                assert not state.json()["drained"]
            answer = await at_decode.post(
                PATH, json={**body, "kv_transfer_params": first.json()["kv_transfer_params"]}, headers={"x-request-id": "r1"}
            )
            assert answer.status_code == 200
            await asyncio.wait_for(prefill.drained.wait(), 15)

    run(story())


def test_a_worker_is_in_the_registry_with_its_chunks_until_it_has_drained(redis_url, unused_model):
    """Record, load and chunks stand in the shared index; a drained worker has left it."""

    async def story():
        index = RedisIndex(redis_url, unused_model)
        async with worker(Role.BOTH, redis_url, model=unused_model) as (host, client):

            async def rows():
                return [row for row in (await index.registry()).rows if row.lease_s > 0]

            async def registered():
                return bool(await rows())

            await until(registered)
            (row,) = await rows()
            assert (row.record.id, row.record.url, row.record.role, row.record.epoch) == ("both-0", host.url, Role.BOTH, host.epoch)
            body = {**chat("word " * 500), "model": unused_model}
            await client.post(PATH, json=body)
            messages = [{name: msgspec.Raw(msgspec.json.encode(value)) for name, value in message.items()} for message in body["messages"]]
            keys = chunk_keys(canonical_chat(messages), start_bytes(), 5, 256).tolist()

            async def published():
                return (await index.holders(keys[:6])) == [(row.slot,)] * 6

            await until(published)
            host.drain()
            await asyncio.wait_for(host.drained.wait(), WAIT_S)
            assert not await rows()
        await index.aclose()

    run(story())
