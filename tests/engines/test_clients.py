"""Clients of real engines: those that leave free what they held, those that bring no Penstock parts are served too."""

import asyncio
import json
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from penstock_dataplane.loop import run
from raw_engine import CLAIM_S, RawEngine
from routed import routed

LEAVERS = 30
WAIT_S = 120.0
BENCH_S = 900.0
BENCHED = 24
BENCH = (
    "from vllm.benchmarks.serve import add_cli_args, main; from vllm.utils.argparse_utils import FlexibleArgumentParser as Parser; "
    "parser = Parser(); add_cli_args(parser); main(parser.parse_args())"
)
"""`vllm bench serve`; the command itself does not start in builds without vLLM's own metadata."""


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


def test_clients_that_leave_give_everything_back(start: Callable[..., Any], engines: Sequence[RawEngine]) -> None:
    """30 leave in prefill or mid-stream, divided over two engines: nothing runs, waits or is held once the claims have run out."""

    async def story() -> None:
        async with start(adopted=("prefill", "decode")) as stack:
            rng = random.Random(5)
            await asyncio.gather(*(_leave(stack, rng, number) for number in range(LEAVERS)))
            began = asyncio.get_running_loop().time()
            await stack.until(lambda: not any(map(_in_use, engines)), "the engines are as they were")
            assert asyncio.get_running_loop().time() - began <= CLAIM_S + 10
            await stack.until_async(stack.idle, "nothing runs or waits")

    run(story())


def _in_use(engine: RawEngine) -> float:
    return sum(engine.metric(f"vllm:{name}") for name in ("kv_cache_usage_perc", "num_requests_running", "num_requests_waiting"))


def test_one_plain_server_and_a_pair_with_roles_need_no_penstock_part(engines: Sequence[RawEngine], tmp_path: Path) -> None:
    """`penstock router --endpoint URL` and `…,role=prefill`, `…,role=decode`: the pair says what the one says, and KV moves."""

    async def ask(salt: str, *options: str) -> list[str]:
        texts = []
        with routed(tmp_path, options) as router:
            client = openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0)
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
        before = engines[1].metric("vllm:nixl_bytes_transferred_sum")
        pair = await ask("pair", "--endpoint", f"{engines[0].url},role=prefill", "--endpoint", f"{engines[1].url},role=decode")
        assert pair == alone
        assert engines[1].metric("vllm:nixl_bytes_transferred_sum") > before

    run(story())


@pytest.mark.long
def test_vllms_own_load_generator_runs_through_the_router_without_a_failure(
    engines: Sequence[RawEngine], vllm_python: str, tiny_model: Path, tmp_path: Path
) -> None:
    """`vllm bench serve`: streamed chats by tokens of its own making, all completed."""
    with routed(tmp_path, ("--endpoint", engines[0].url, "--endpoint", engines[1].url)) as router:
        words = ["--backend", "openai-chat", "--base-url", router.url, "--endpoint", "/v1/chat/completions", "--model", "m"]
        words += ["--tokenizer", str(tiny_model), "--dataset-name", "random", "--input-len", "200", "--output-len", "8"]
        words += ["--num-prompts", str(BENCHED), "--max-concurrency", "4", "--disable-tqdm"]
        words += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "bench.json"]
        ended = subprocess.run([vllm_python, "-c", BENCH, *words], capture_output=True, text=True, timeout=BENCH_S, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads((tmp_path / "bench.json").read_text())
    assert (found["completed"], found["failed"]) == (BENCHED, 0)
