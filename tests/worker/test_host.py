"""A worker's HTTP surface over real sockets, with the sim engine behind it."""

import asyncio
import contextlib

import httpx
import msgspec
import openai
import pytest
from penstock_core.facts import decode_facts
from penstock_core.kv_events import decode_state
from penstock_dataplane.loop import run
from penstock_worker.assembly import build_host
from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.state import decode_worker_state

TOKEN = {"x-penstock-token": "fleet"}
WAIT_S = 60


@contextlib.asynccontextmanager
async def worker(token="fleet", **settings):
    """A running host and an HTTP client for it."""
    config = WorkerConfig(**{"model": "m", "speed": 20.0, "kv_tokens": 64 * 256, "drain_s": WAIT_S, **settings})
    host = build_host(config, WorkerSecrets(chunk_secret=5, fleet_token=token))
    await host.start()
    try:
        async with httpx.AsyncClient(base_url=host.url, timeout=WAIT_S) as client:
            yield host, client
    finally:
        await host.stop()


async def until(condition):
    """Poll a condition with a deadline."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def chat(text, **fields):
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 20, **fields}


def test_the_openai_client_streams_and_asks_whole_answers():
    """The official client gets the same text streamed and whole, with usage."""

    async def story():
        async with worker() as (host, _):
            client = openai.AsyncOpenAI(base_url=f"{host.url}/v1", api_key="none", timeout=WAIT_S)
            assert [model.id async for model in client.models.list()] == ["m"]
            whole = await client.chat.completions.create(**chat("hello " * 300))
            stream = await client.chat.completions.create(**chat("hello " * 300), stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == whole.choices[0].message.content != ""
            assert chunks[-1].usage.prompt_tokens_details.cached_tokens >= 64
            completion = await client.completions.create(model="m", prompt="once upon", max_tokens=5)
            assert completion.usage.completion_tokens == 5
            await client.close()

    run(story())


def test_facts_tell_hits_and_load():
    """A repeated prompt's facts give the cached tokens, and the chunks that they cover."""

    async def story():
        async with worker() as (_, client):
            texts = []
            for _ in range(2):
                answer = await client.post("/v1/chat/completions", json=chat("word " * 500), headers={"x-request-id": "abc"})
                assert answer.headers["x-request-id"] == "abc"
                texts.append(decode_facts(answer.headers["x-penstock-facts"].encode()))
            first, second = texts
            assert (first.hit_chunks, first.hit_tokens) == (0, 0)
            assert second.prompt_tokens == first.prompt_tokens > 400
            assert second.hit_tokens >= 6 * 64
            chunks = len("c" + "user\x1f" + "word " * 500) // 256
            assert 0.7 * chunks < second.hit_chunks <= chunks
            assert second.kv_total == 64 * 256
            assert second.generation

    run(story())


BAD = [
    ("not json", b"{", 400, None),
    ("not an object", b"[]", 400, None),
    ("invalid UTF-8", b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}', 400, "messages"),
    ("model is no text", msgspec.json.encode(chat("x", model=7)), 400, "model"),
    ("unknown model", msgspec.json.encode(chat("x", model="other")), 404, "model"),
    ("no messages", b'{"model":"m"}', 400, "messages"),
    ("messages of a wrong type", b'{"model":"m","messages":7}', 400, "messages"),
    ("absurd max_tokens", msgspec.json.encode(chat("x", max_tokens=10**9)), 400, "max_tokens"),
    ("negative max_tokens", msgspec.json.encode(chat("x", max_tokens=-1)), 400, "max_tokens"),
    ("prompt over the context", msgspec.json.encode(chat("x " * 20_000)), 400, "messages"),
]


def test_bad_input_is_named():
    """Each wrong body has its status, OpenAI's error form and the offending field; nothing is left running."""

    async def story():
        async with worker() as (host, client):
            for name, body, status, param in BAD:
                answer = await client.post("/v1/chat/completions", content=body)
                assert answer.status_code == status, (name, answer.text)
                error = answer.json()["error"]
                assert error["type"] == "invalid_request_error", name
                assert error["message"], name
                assert error["param"] == param, (name, error)
            assert (await client.get("/v1/chat/completions")).status_code == 405
            assert (await client.post("/v1/embeddings", json={})).status_code == 404
            assert (await client.get("/nothing")).status_code == 404
            assert (await client.post("/v1/chat/completions", content=b"x" * (17 * 1024 * 1024))).status_code == 413
            assert host.load().running == host.load().waiting == 0
            assert host._follower.translator.open_calls == 0

    run(story())


@pytest.mark.parametrize("after_head", [False, True])
def test_a_client_that_leaves_frees_its_kv(after_head):
    """Before the head and in the middle of the stream: the request is aborted in the engine and its blocks become free."""

    async def story():
        async with worker(speed=0.2 if not after_head else 1.0) as (host, client):
            body = chat("go " * 2_000, max_tokens=12_000, ignore_eos=True, stream=True)  # longer than the test waits
            if after_head:
                async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                    assert answer.status_code == 200
                    async for _ in answer.aiter_bytes():
                        break
                    assert host.load().running == 1
            else:
                request = asyncio.create_task(client.post("/v1/chat/completions", json=body))
                await until(lambda: host.load().running + host.load().waiting > 0)
                request.cancel()
            await until(lambda: host.load().running + host.load().waiting == 0)
            await until(lambda: host._answering.running == 0)
            await until(lambda: host.load().kv_used_tokens == 0)
            assert host._follower.translator.open_calls == 0
            assert "penstock_worker_aborted_total 1.0" in (await client.get("/metrics")).text

    run(story())


def test_draining_refuses_and_finishes():
    """A drain lets the running stream end, refuses the next request with its reason, and says when it is done."""

    async def story():
        async with worker(speed=2.0) as (host, client):
            async with client.stream("POST", "/v1/chat/completions", json=chat("go", max_tokens=50, stream=True)) as answer:
                pieces = answer.aiter_bytes()
                await anext(pieces)
                begun = await client.post("/penstock/drain", headers=TOKEN)
                assert begun.status_code == 202
                state = decode_worker_state((await client.get("/penstock/state", headers=TOKEN)).content)
                assert state.draining
                assert state.load.draining
                assert not state.drained
                assert state.exchanges == 1
                refused = await client.post("/v1/chat/completions", json=chat("next"))
                assert (refused.status_code, refused.headers["x-penstock-refuse"]) == (503, "draining")
                rest = b"".join([piece async for piece in pieces])
            assert rest.endswith(b"data: [DONE]\n\n")
            await asyncio.wait_for(host.drained.wait(), WAIT_S)
            state = decode_worker_state((await client.get("/penstock/state", headers=TOKEN)).content)
            assert state.drained
            assert state.exchanges == 0

    run(story())


def test_an_engine_that_stops_cuts_its_streams_with_an_error():
    """Never a silent end: the stream ends with an error event, and without the chunk that would make it look whole."""

    async def story():
        async with worker(speed=1.0) as (host, client):
            pieces = []
            with pytest.raises(httpx.RemoteProtocolError):
                async with client.stream("POST", "/v1/chat/completions", json=chat("go", max_tokens=4_000, stream=True)) as answer:
                    async for piece in answer.aiter_bytes():
                        pieces.append(piece)
                        if len(pieces) == 1:
                            await host._engine.stop()
            last = b"".join(pieces).rstrip().rpartition(b"\n\n")[2]
            assert last.startswith(b"event: error\ndata: ")
            assert msgspec.json.decode(last.partition(b"data: ")[2])["error"]["type"] == "server_error"
            assert host._follower.translator.open_calls == 0

    run(story())


def test_a_full_engine_refuses():
    """Over `max_waiting` a request is refused as full, with a status, at once."""

    async def story():
        async with worker(max_waiting=1, kv_tokens=64 * 100, speed=0.05) as (host, client):
            tasks = [asyncio.create_task(client.post("/v1/chat/completions", json=chat("x " * 4_000))) for _ in range(6)]
            done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_S)
            answer = done.pop().result()
            assert (answer.status_code, answer.headers["x-penstock-refuse"]) == (503, "full")
            for task in waiting:
                task.cancel()
            await until(lambda: host.load().running + host.load().waiting == 0)
            assert 'penstock_worker_refused_total{reason="full"}' in (await client.get("/metrics")).text

    run(story())


def test_control_paths_and_salts_need_the_fleets_token():
    """Without it /penstock/* and salted requests are forbidden; with it a salt keeps KV apart."""

    async def story():
        async with worker() as (_, client):
            for path in ("/penstock/state", "/penstock/kv"):
                assert (await client.get(path)).status_code == 403
                assert (await client.get(path, headers={"x-penstock-token": "flee"})).status_code == 403
                assert (await client.get(path, headers=TOKEN)).status_code == 200
            body = chat("secret " * 300)
            assert (await client.post("/v1/chat/completions", json=body, headers={"x-penstock-salt": "a"})).status_code == 403
            hits = []
            for salt in ("a", "a", "b", "b"):
                answer = await client.post("/v1/chat/completions", json=body, headers={**TOKEN, "x-penstock-salt": salt})
                hits.append(decode_facts(answer.headers["x-penstock-facts"].encode()).hit_chunks)
            assert hits[0] == hits[2] == 0
            assert hits[1] == hits[3] > 0

    run(story())


def test_without_a_token_loopback_may_ask():
    """No fleet token configured: /penstock/* answers on loopback, salts are refused."""

    async def story():
        async with worker(token="") as (_, client):
            assert (await client.get("/penstock/state")).status_code == 200
            answer = await client.post("/v1/chat/completions", json=chat("x"), headers={"x-penstock-salt": "a", "x-penstock-token": ""})
            assert answer.status_code == 403

    run(story())


def test_kv_lists_the_chunks_of_what_was_asked():
    """GET /penstock/kv gives the worker's epoch and the keys of the cached prompt, which a repeated prompt then hits."""

    async def story():
        async with worker() as (host, client):
            empty = decode_state((await client.get("/penstock/kv", headers=TOKEN)).content)
            assert (empty.epoch, len(empty.keys)) == (host.epoch, 0)
            await client.post("/v1/chat/completions", json=chat("word " * 500))
            held = decode_state((await client.get("/penstock/kv", headers=TOKEN)).content)
            assert held.sequence > empty.sequence
            assert len(held.keys) >= 6

    run(story())


def test_metrics_speak_vllms_names_and_ours():
    """One page holds the engine's figures and the host's."""

    async def story():
        async with worker() as (_, client):
            page = (await client.get("/metrics")).text
            for name in ("vllm:num_requests_running", "vllm:prefix_cache_hits_total", "penstock_worker_refused_total"):
                assert name in page

    run(story())
