"""Clients of real engines: those that leave free what they held, those that bring no Penstock parts are served too."""

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
from penstock_dataplane.loop import run
from raw_engine import CLAIM_S, RawEngine
from routed import routed

LEAVERS = 30
WAIT_S = 120.0


async def _leave(stack: Any, rng: random.Random, number: int) -> None:
    """Ask for a long answer, and go away: at once (in the prefill), or after the first pieces."""
    words = " ".join(str(rng.randint(0, 999)) for _ in range(rng.randint(100, 700)))
    body = {"model": "m", "stream": True, "max_tokens": 400, "ignore_eos": True, "messages": [{"role": "user", "content": words}]}
    try:
        async with asyncio.timeout(0.02 + rng.random() if number % 3 == 0 else WAIT_S):
            async with stack.client.stream("POST", f"{stack.url}/v1/chat/completions", json=body) as response:
                seen = 0
                async for line in response.aiter_lines():
                    seen += line.startswith("data: {")
                    if seen > 3:
                        return
    except TimeoutError:
        return


def test_clients_that_leave_give_everything_back(adopt: Callable[..., Any]) -> None:
    """30 leave in prefill or mid-stream, divided over two engines: nothing runs, waits or is held once the claims have run out."""

    async def story() -> None:
        async with adopt(prefill=1, decode=1) as stack:
            rng = random.Random(5)
            await asyncio.gather(*(_leave(stack, rng, number) for number in range(LEAVERS)))
            began = asyncio.get_running_loop().time()
            await stack.until_async(stack.idle, "nothing runs or waits")
            await stack.until_async(lambda: _empty(stack), "no KV is in use")
            assert asyncio.get_running_loop().time() - began <= CLAIM_S + 10 + 10  # two looks a second, on a busy machine

    run(story())


async def _empty(stack: Any) -> bool:
    return not await stack.worker_metric("vllm:kv_cache_usage_perc")


def test_one_plain_server_and_a_pair_with_roles_need_no_penstock_part(engines: Sequence[RawEngine], tmp_path: Path) -> None:
    """`penstock router --endpoint URL` and `…,role=prefill`, `…,role=decode`: the pair says what the one says, and KV moves."""

    async def moved() -> float:
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"{engines[1].url}/metrics")).text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("vllm:nixl_bytes_transferred_sum"))

    async def ask(salt: str, *options: str) -> list[str]:
        texts = []
        with routed(tmp_path, options) as url:
            client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            for number in range(6):
                question = f"{number} water turns the turbine, def f(x): return x " * 20
                answer = await client.chat.completions.create(
                    model="m",
                    messages=[{"role": "user", "content": question}],
                    temperature=0,
                    max_tokens=12,
                    extra_body={"cache_salt": salt},  # else what the one has computed would be there for the pair
                )
                texts.append(answer.choices[0].message.content or "")
            await client.close()
        return texts

    async def story() -> None:
        alone = await ask("alone", "--endpoint", engines[1].url)
        before = await moved()
        pair = await ask("pair", "--endpoint", f"{engines[0].url},role=prefill", "--endpoint", f"{engines[1].url},role=decode")
        assert pair == alone
        assert await moved() > before

    run(story())
