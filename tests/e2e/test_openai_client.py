"""The official `openai` client against a real router and real workers, unchanged."""

import asyncio
import json

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from penstock_dataplane.loop import run
from penstock_worker.engines.sim.reference import reference_text

MESSAGES = [{"role": "user", "content": "What is a penstock? " * 40}]
TOOLS = [{"type": "function", "function": {"name": "level", "description": "Level of the lake", "parameters": {"type": "object"}}}]


def foretold(**fields) -> str:
    """The text for MESSAGES; tools count as the client writes them, without spaces."""
    return reference_text(json.dumps({"model": "m", "messages": MESSAGES, **fields}, separators=(",", ":")).encode())


async def in_thread(call):
    """The synchronous client, away from the loop that runs the fleet."""
    return await asyncio.to_thread(call)


def test_the_official_client_works_unchanged(start_stack):
    """Sync and async, streamed and whole, chat and completions, tools, usage, model list, and errors as its own exceptions."""

    async def story():
        async with start_stack(prefill=1, decode=1, worker={"speed": 20.0}) as stack:
            base = f"{stack.url}/v1"
            sync = OpenAI(base_url=base, api_key="none", max_retries=0)
            whole = await in_thread(lambda: sync.chat.completions.create(model="m", messages=MESSAGES, max_tokens=12, tools=TOOLS))
            assert whole.choices[0].message.content == foretold(max_tokens=12, tools=TOOLS)
            assert whole.choices[0].finish_reason in ("stop", "length")
            assert whole.usage.prompt_tokens > 100
            assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

            def streamed():
                chunks = list(
                    sync.chat.completions.create(
                        model="m", messages=MESSAGES, max_tokens=12, stream=True, stream_options={"include_usage": True}
                    )
                )
                return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks[-1].usage

            text, usage = await in_thread(streamed)
            assert text == foretold(max_tokens=12)
            assert usage.completion_tokens > 0

            async with AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
                stream = await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=12, stream=True)
                chunks = [chunk async for chunk in stream]
                assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == foretold(max_tokens=12)
                assert all(chunk.choices for chunk in chunks), "usage was not asked for and must not come"
                several = await client.completions.create(model="m", prompt="The upper lake", n=3, max_tokens=5)
                assert len(several.choices) == 3
                assert [model.id async for model in client.models.list()] == ["m"]
                with pytest.raises(openai.NotFoundError, match="allowed: m"):
                    await client.chat.completions.create(model="other", messages=MESSAGES)
                with pytest.raises(openai.BadRequestError, match="max_tokens"):
                    await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=-5)
                with pytest.raises(openai.BadRequestError, match="allowed: 1 to 131071"):
                    await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "word " * 140_000}])
            assert await stack.worker_metric("penstock_worker_kv_transferred_bytes_total", direction="pulled") > 0
            await stack.until_async(stack.idle, "nothing is left")

    run(story())


def test_clients_that_leave_cost_nothing_further(start_stack):
    """Twenty clients leave mid-prefill and mid-stream: soon nothing runs, waits or is kept anywhere."""

    async def story():
        async with start_stack(prefill=1, decode=1, worker={"speed": 0.5, "kv_claim_seconds": 2.0}) as stack:
            body = json.dumps({"model": "m", "stream": True, "max_tokens": 2000, "ignore_eos": True, "messages": MESSAGES}).encode()
            url = f"{stack.url}/v1/chat/completions"
            for number in range(20):
                async with stack.client.stream("POST", url, content=body) as response:
                    if number % 2:
                        async for _ in response.aiter_bytes():
                            break
            for _ in range(10):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await stack.client.post(url, content=body)
            await stack.until_async(stack.idle, "every request that was left is aborted in the engines")
            aborted = await stack.router_metric("penstock_router_requests_total", outcome="client_gone")
            assert aborted == 30

    run(story())
