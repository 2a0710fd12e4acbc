"""Two undivided real engines: what the router foretells of prefix hits is what vLLM counts, whatever happens to the cache."""

import asyncio
import os
import random
import signal
from collections.abc import Callable
from typing import Any

from penstock_dataplane.loop import run
from raw_engine import BLOCK_TOKENS

TURNS, CLIENTS, WARM_UP = 300, 4, 30
WORDS = "def return import self class water turbine penstock json value list for in range é 漢字 {} # :".split()  # noqa: SIM905
CHUNK_TOKENS = 256
"""More than a chunk of 256 bytes can have."""


async def _converse(stack: Any, rng: random.Random, turns: int, shared: list[str]) -> None:
    """Conversations that share a few beginnings, a new one now and then."""
    talk: list[dict[str, str]] = []
    for _ in range(turns):
        if not talk or len(talk) > 7:
            talk = [{"role": "system", "content": rng.choice(shared)}]
        talk.append({"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.randint(10, 120)))})
        body = {"model": "m", "messages": talk, "max_tokens": rng.randint(2, 30), "temperature": 0}
        answer = await stack.client.post(f"{stack.url}/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        talk.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"] or ""})
        await asyncio.sleep(rng.uniform(0.05, 0.2))  # a client that reads


async def _traffic(stack: Any, seed: int, turns: int) -> list[dict[str, Any]]:
    shared = [" ".join(random.Random(head).choices(WORDS, k=250)) for head in range(3)]
    each = turns // CLIENTS
    await asyncio.gather(*(_converse(stack, random.Random(seed * 100 + client), each, shared) for client in range(CLIENTS)))
    return list(reversed(await stack.decisions(each * CLIENTS)))


def _judge(decisions: list[dict[str, Any]]) -> tuple[float, float]:
    """Share of the decisions whose foretold hit is within a chunk or a block of vLLM's count, and vLLM's mean hit ratio."""
    close = hits = 0.0
    for one in decisions:
        foretold, cached = one["placement"]["hit_tokens"], one["cached_tokens"]
        assert cached is not None, one
        close += abs(foretold - cached) <= max(CHUNK_TOKENS, BLOCK_TOKENS)
        hits += cached / one["prompt_tokens"]
    return close / len(decisions), hits / len(decisions)


def test_foretold_hits_are_vllms_own_also_while_blocks_are_evicted(adopt: Callable[..., Any]) -> None:
    """300 multi-turn requests on small caches: at least 98 % within the grain, mean hit ratio over one half, counts agree."""

    async def story() -> None:
        async with adopt(both=1, second=1, router={"decisions_kept": 1000}) as stack:
            decisions = await _traffic(stack, 1, TURNS)
            close, hit_ratio = _judge(decisions[WARM_UP:])
            assert await stack.worker_metric("penstock_worker_prompts_compared_total") >= TURNS // 2
            assert close >= 0.98, close
            assert hit_ratio >= 0.5, hit_ratio
            assert await stack.worker_metric("penstock_worker_count_disagreements_total", what="tokens") == 0

    run(story())


def test_an_engine_that_died_is_back_under_a_new_epoch_and_its_old_kv_is_not_believed(start_engines: Callable[..., Any]) -> None:
    """kill -9 of an engine core: its worker restarts, hits are foretold as before, none from the old cache."""

    async def story() -> None:
        async with start_engines(both=1, second=1, router={"decisions_kept": 1000}) as stack:
            await _traffic(stack, 2, 60)
            before = {worker.id: worker.pid for worker in stack.fleet.status()}
            victim = next(iter(before))
            os.kill(_core_of(before[victim]), signal.SIGKILL)
            await stack.until(
                lambda: any(one.id == victim and one.pid != before[victim] and one.url for one in stack.fleet.status()), "back"
            )
            await stack.until_async(lambda: stack.sees(2), "the router sees it again")
            decisions = await _traffic(stack, 2, 80)
            close, _ = _judge(decisions)
            assert close >= 0.98, close

    run(story())


def _core_of(worker_pid: int) -> int:
    """The engine core among a worker's descendants."""
    import psutil

    for child in psutil.Process(worker_pid).children(recursive=True):
        if "EngineCore" in " ".join(child.cmdline()) or "EngineCore" in child.name():
            return int(child.pid)
    raise AssertionError("the worker has no engine core")
