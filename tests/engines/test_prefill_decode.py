"""Two real engines, prefill and decode: what they say together is what one says alone, and KV really moves."""

import random
from collections.abc import Callable
from typing import Any

import openai
from penstock_dataplane.loop import run

PROMPTS = 50
WORDS = "def return import self class water turbine penstock json value list for in range é 漢字 {} # :".split()  # noqa: SIM905


def _body(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
    """Chats and completions by turns, of 50 to 3,000 tokens."""
    text = " ".join(rng.choices(WORDS, k=int(40 * (55 ** rng.random()))))
    options = {"model": "m", "max_tokens": rng.randint(2, 24), "temperature": 0}
    if number % 2:
        return "/v1/completions", {**options, "prompt": f"{number} {text}"}
    return "/v1/chat/completions", {**options, "messages": [{"role": "user", "content": f"{number} {text}"}]}


def _text(path: str, answer: dict[str, Any]) -> str:
    choice = answer["choices"][0]
    return str(choice["text"] if path == "/v1/completions" else choice["message"]["content"])


async def _streamed(stack: Any, path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Text and usage of a streamed answer, by the official client."""
    client = openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)
    fields = {key: value for key, value in body.items() if key != "model"}
    maker = client.completions if path == "/v1/completions" else client.chat.completions
    pieces, usage = [], None
    async for chunk in await maker.create(model="m", stream=True, stream_options={"include_usage": True}, **fields):  # type: ignore[call-overload]
        usage = chunk.usage or usage
        pieces += [(choice.text if path == "/v1/completions" else choice.delta.content) or "" for choice in chunk.choices]
    await client.close()
    assert usage is not None
    return "".join(pieces), usage.model_dump()


def test_divided_answers_are_those_of_an_undivided_run_and_kv_moves_each_time(start: Callable[..., Any]) -> None:
    """50 prompts of 50 to 3,000 tokens, chat and completions, streamed and not: text, usage and moved bytes."""

    async def story() -> None:
        rng = random.Random(11)
        async with start(adopted=("prefill", "decode")) as stack:
            decode = next(worker for worker in stack.fleet.status() if worker.pool == "decode")
            moved = await stack.worker_metric("vllm:nixl_bytes_transferred_sum")
            for number in range(PROMPTS):
                path, body = _body(rng, number)
                if number % 4 < 2:
                    text, usage = await _streamed(stack, path, body)
                else:
                    answer = await stack.client.post(f"{stack.url}{path}", json=body)
                    assert answer.status_code == 200, answer.text
                    text, usage = _text(path, answer.json()), answer.json()["usage"]
                alone = await stack.client.post(f"{decode.url}{path}", json={**body, "cache_salt": f"alone-{number}"})
                assert alone.status_code == 200, alone.text
                expected = alone.json()
                assert text == _text(path, expected), number
                for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
                    assert usage[name] == expected["usage"][name], (number, name)
                await stack.until_async(lambda was=moved: _moved_more(stack, was), "the decode engine tells of more bytes moved")
                moved = await stack.worker_metric("vllm:nixl_bytes_transferred_sum")
            decisions = await stack.decisions(PROMPTS)
            assert all(one["placement"]["prefill"] == "prefill-0" and one["placement"]["decode"] == "decode-0" for one in decisions)

    run(story())


async def _moved_more(stack: Any, than: float) -> bool:
    return bool(await stack.worker_metric("vllm:nixl_bytes_transferred_sum") > than)
