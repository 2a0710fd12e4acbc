"""The router as a process, its admin surface, and clients that know nothing of Penstock."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time

import openai
import pytest
from penstock_router.config import Secrets

from tests.router.conftest import STREAM_HEAD, delta, event, piece, waits_for

TOOLS = [{"type": "function", "function": {"name": "turn", "parameters": {"type": "object"}}}]


def test_the_openai_client_works_unchanged(play):
    """Async: whole and streamed answers, tools passed through, usage, models, and its own error classes."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url)
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{world.origin.port}/v1", api_key="any", max_retries=0)
        try:
            messages = [{"role": "user", "content": "hello"}]
            answer = await client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
            assert answer.choices[0].message.content == "from a" and answer.usage.prompt_tokens == 11
            assert one.seen[0].body["tools"] == TOOLS
            options = {"include_usage": True}
            stream = await client.chat.completions.create(model="m", messages=messages, stream=True, stream_options=options)
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content for c in chunks if c.choices) == "from a"
            assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 4
            assert [model.id async for model in client.models.list()] == ["m"]
            assert (await client.models.retrieve("m")).id == "m"
            with pytest.raises(openai.NotFoundError, match="model is 'x'"):
                await client.chat.completions.create(model="x", messages=messages)
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(model="m", messages=[])
            one.behaviour = cut
            with pytest.raises(openai.APIError, match="broke off"):
                async for _ in await client.chat.completions.create(model="m", messages=messages, stream=True):
                    pass
        finally:
            await client.close()

    play(scenario)


async def cut(upstream, seen, writer):
    """Half a stream."""
    writer.write(STREAM_HEAD + piece(event(delta("half"))))
    await writer.drain()
    writer.close()


def test_the_synchronous_openai_client_works_too(play):
    """From a thread, whole and streamed."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url)

        def ask():
            with openai.OpenAI(base_url=f"http://127.0.0.1:{world.origin.port}/v1", api_key="any", max_retries=0) as client:
                messages = [{"role": "user", "content": "hello"}]
                whole = client.chat.completions.create(model="m", messages=messages).choices[0].message.content
                with client.chat.completions.create(model="m", messages=messages, stream=True) as stream:
                    return whole, "".join(chunk.choices[0].delta.content for chunk in stream if chunk.choices)

        assert await asyncio.to_thread(ask) == ("from a", "from a")
        await asyncio.get_running_loop().shutdown_default_executor()
        await world.until(lambda: threading.active_count() == 1, "thread ended")

    play(scenario)


def test_adapters_and_models_of_plain_servers_are_discovered(play):
    """`parent` makes an adapter; both are listed and routed by name; `model` goes on as the client wrote it."""

    async def scenario(world):
        one = await world.upstream("a", {"id": "base", "max_model_len": 4096}, {"id": "tuned", "parent": "base"})
        await world.start_router(one.url)
        listed = (await world.send("/v1/models", method="GET")).json["data"]
        assert [(card["id"], card.get("parent")) for card in listed] == [("base", None), ("tuned", "base")]
        assert (await world.chat(model="tuned")).status == 200 and one.seen[0].body["model"] == "tuned"

    play(scenario)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/rerank"])
def test_other_paths_go_to_endpoints_that_declare_them(play, path):
    """Routed by model and capability, body untouched."""

    async def scenario(world):
        a, b = await world.upstream("a"), await world.upstream("b")
        await world.start_router(a.url, f"{b.url},capabilities={path.rpartition('/')[2]}+chat")
        body = b'{"input":  "x", "model": "m"}'
        assert [(await world.send(path, body)).status for _ in range(3)] == [200] * 3
        assert a.seen == [] and [seen.path for seen in b.seen] == [path] * 3 and b.seen[0].body == json.loads(body)
        assert b.seen[0].headers["content-length"] == str(len(body))

    play(scenario)


def test_headers_between_client_and_endpoint(play):
    """Trace and id go on, Authorization and everything of Penstock's stay; a bad id is replaced."""

    async def scenario(world):
        one = await world.upstream("a")
        one.facts = ("x-penstock-facts: v=1;prompt_tokens=9", "x-engine: yes", "x-request-id: theirs")
        await world.start_router(one.url)
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        sent = {"traceparent": trace, "authorization": "Bearer secret", "x-penstock-token": "forged", "x-penstock-salt": "forged"}
        answer = await world.chat(headers={**sent, "x-request-id": "has a space", "accept-encoding": "gzip"})
        got = one.seen[0].headers
        assert got["traceparent"] == trace and got["x-request-id"] == answer.headers["x-request-id"] != "has a space"
        assert not {"authorization", "accept-encoding"} & set(got) and not any(name.startswith("x-penstock") for name in got)
        assert answer.headers["x-engine"] == "yes" and "x-penstock-facts" not in answer.headers
        assert "x-penstock-placement" not in answer.headers

    play(scenario)


def test_authorization_goes_on_only_if_configured(play):
    """For plain servers with keys of their own."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url, forward_authorization=True)
        await world.chat(headers={"authorization": "Bearer theirs"})
        assert one.seen[0].headers["authorization"] == "Bearer theirs"

    play(scenario)


def test_repeated_prompts_go_back_to_the_server_that_had_them(play):
    """Plain servers: the hit is guessed from the router's own placements, and shown by explain and the figures."""

    async def scenario(world):
        ones = [await world.upstream(name) for name in "ab"]
        router = await world.start_router(*(one.url for one in ones), policy="prefix-affinity")
        texts = [f"{n} the gate opens " * 100 for n in range(4)]
        first = [(await world.chat(text)).text for text in texts]
        assert [(await world.chat(text + " more")).text for text in texts] == first
        said = (await world.chat(texts[0], headers={"x-penstock-explain": "1"})).headers["x-penstock-placement"]
        assert int(dict(pair.split("=") for pair in said.split(";"))["hit_tokens"]) > 0
        assert router.figures.model("m").hit_ratio.count == 9 and router.figures.model("m").hit_ratio.total > 4

    play(scenario)


def test_admin_shows_endpoints_decisions_and_metrics(play):
    """With the admin key only; health needs none. The metric of a request is there once."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url, secrets=Secrets(1, admin_key="admin"), policy="target-misses", explain_every=1)
        await world.chat(headers={"x-request-id": "look-at-me"}, stream=True)
        key = {"authorization": "Bearer admin"}
        assert (await world.send("/admin/endpoints", method="GET")).status == 401
        shown = (await world.send("/admin/endpoints", headers=key, method="GET")).json["models"][0]
        assert shown["model"] == "m" and shown["endpoints"][0]["role"] == "both"
        (decision,) = (await world.send("/admin/decisions", headers=key, method="GET")).json["decisions"]
        assert decision["request_id"] == "look-at-me" and decision["placement"]["candidates"][0]["terms"]
        assert decision["outcome"] == "ok" and decision["ttft_s"] >= 0
        (learned,) = (await world.send("/admin/learned", headers=key, method="GET")).json["models"]
        assert learned["profiles"][0]["prefill"]["in_force"] is False
        assert "of 200 samples" in learned["profiles"][0]["prefill"]["why"]
        assert learned["profiles"][0]["ttft"]["own"] is False and learned["profiles"][0]["ttft"]["errors"] == 1
        assert learned["lengths"][0]["name"] == "model"
        metrics = (await world.send("/metrics", method="GET")).body.decode()
        for line in (
            'penstock_router_requests_total{model="m",outcome="ok"} 1.0',
            'penstock_router_fitted_profile{model="m",phase="prefill",pool="given",profile="polynomial-reference"} 0.0',
            'penstock_router_ttft_seconds_count{model="m"} 1.0',
            'penstock_router_queue_seconds_count{model="m"} 1.0',
            "penstock_router_decision_seconds_count 1.0",
            'penstock_router_endpoints{model="m",role="both"} 1.0',
            "penstock_router_active_requests 0.0",
        ):
            assert line in metrics
        assert (await world.send("/healthz", method="GET")).status == (await world.send("/readyz", method="GET")).status == 200
        assert (await world.send("/docs", method="GET")).status == 200

    play(scenario)


def test_a_drain_finishes_streams_and_takes_nothing_new(play):
    """Not ready, no new connection; the stream that runs comes to its end."""

    async def scenario(world):
        one = await world.upstream("a")
        gate = asyncio.Event()
        one.behaviour = waits_for(gate)
        router = await world.start_router(one.url)
        running = asyncio.ensure_future(world.chat(stream=True))
        await world.until(lambda: len(one.seen) == 1, "running")
        draining = asyncio.ensure_future(router.drain())
        await world.until(lambda: router.draining and router.server.draining, "draining")
        with pytest.raises(OSError):
            await asyncio.open_connection(world.origin.host, world.origin.port)
        gate.set()
        assert (await running).text == "from a" and await draining

    play(scenario)


def test_a_drain_cuts_what_does_not_end(play):
    """The deadline of the drain is kept, and said."""

    async def scenario(world):
        one = await world.upstream("a")
        one.behaviour = waits_for(asyncio.Event())
        router = await world.start_router(one.url, drain_s=0.1)
        running = asyncio.ensure_future(world.chat())
        await world.until(lambda: len(one.seen) == 1, "running")
        assert not await router.drain()
        assert isinstance((await asyncio.gather(running, return_exceptions=True))[0], Exception)

    play(scenario)


def test_sigterm_drains_the_process(tmp_path):
    """The process listens, says so, drains on SIGTERM and exits 0; its log is JSON and quotes no secret."""
    url_file, keys = tmp_path / "url", tmp_path / "keys.yaml"
    keys.write_text("sk-hush: {tenant: t}\n")
    command = [sys.executable, "-m", "penstock_cli.main", "router", "--port", "0", "--endpoint", "http://127.0.0.1:9,model=m"]
    environment = {**os.environ, "PENSTOCK_FLEET_TOKEN": "hush-fleet", "PENSTOCK_ADMIN_KEY": "hush-admin"}
    with subprocess.Popen(
        [*command, "--api-keys", str(keys), "--url-file", str(url_file)], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        deadline = time.monotonic() + 60
        while not url_file.exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    lines = [json.loads(line) for line in log.splitlines()]
    assert process.returncode == 0
    assert [line["message"] for line in lines][-2:] == ["draining", "stopped"] and lines[-1]["clean"] is True
    assert "hush" not in log
