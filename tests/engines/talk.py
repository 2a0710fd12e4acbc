"""Traffic of conversations for tests of real engines: multi-turn chats that share a few beginnings, and what the router said of each.

`test_hits` and `test_killed` use it. It knows the stack's URL and the router's decisions, and nothing of engines.
"""

import asyncio
import random
from typing import Any

import httpx
from raw_engine import BLOCK_TOKENS

CLIENTS = 4
WORDS = "def return import self class water turbine penstock json value list for in range é 漢字 {} # :".split()  # noqa: SIM905
CHUNK_TOKENS = 256
"""More than a chunk of 256 bytes can have."""
LONGEST_TALK = 7
"""Messages; then a new conversation begins."""


async def traffic(stack: Any, seed: int, turns: int) -> list[dict[str, Any]]:
    """So many turns of CLIENTS clients; the router's decisions on them, oldest first."""
    each = turns // CLIENTS
    await asyncio.gather(*(_converse(stack, random.Random(seed * 100 + client), each) for client in range(CLIENTS)))
    return list(reversed(await stack.decisions(each * CLIENTS)))


async def _converse(stack: Any, rng: random.Random, turns: int) -> None:
    talk = Talk(rng)
    for _ in range(turns):
        answer = await stack.client.post(f"{stack.url}/v1/chat/completions", json=talk.next_turn())
        assert answer.status_code == 200, answer.text
        talk.answered(answer.json()["choices"][0]["message"]["content"] or "")
        await asyncio.sleep(rng.uniform(0.05, 0.2))  # a client that reads


class Talk:
    """One client's conversations, one after another."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._messages: list[dict[str, str]] = []

    def next_turn(self) -> dict[str, Any]:
        """A chat body with one more question."""
        rng = self._rng
        if not self._messages or len(self._messages) > LONGEST_TALK:
            shared = random.Random(rng.randrange(3))
            self._messages = [{"role": "system", "content": " ".join(shared.choices(WORDS, k=250))}]
        self._messages.append({"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.randint(10, 120)))})
        return {"model": "m", "messages": list(self._messages), "max_tokens": rng.randint(2, 30), "temperature": 0}

    def answered(self, text: str) -> None:
        self._messages.append({"role": "assistant", "content": text})


def close_ratio(decisions: list[dict[str, Any]]) -> float:
    """Share of the decisions whose foretold hit is within a chunk or a block of vLLM's own count."""
    grain = max(CHUNK_TOKENS, BLOCK_TOKENS)
    assert all(one["cached_tokens"] is not None for one in decisions)
    return sum(abs(one["placement"]["hit_tokens"] - one["cached_tokens"]) <= grain for one in decisions) / len(decisions)


def hit_ratio(decisions: list[dict[str, Any]]) -> float:
    """Mean share of a prompt that vLLM found in its cache."""
    return sum(float(one["cached_tokens"] / one["prompt_tokens"]) for one in decisions) / len(decisions)


class Load:
    """Clients that stream turns until `stop`, and how each turn ended. An error before the first byte is a failure of the stack's."""

    def __init__(self, stack: Any, seed: int, clients: int = 3) -> None:
        self.whole = 0
        self.cut = 0
        """Streams that ended early, after their first byte."""
        self.refused: list[str] = []
        """What clients got instead of a first byte."""
        self._stack = stack
        self._stopping = asyncio.Event()
        self._tasks = [asyncio.create_task(self._client(random.Random(seed * 100 + client))) for client in range(clients)]

    async def until(self, more: int) -> None:
        """Wait for so many further whole answers."""
        wanted = self.whole + more
        await self._stack.until(lambda: self.whole >= wanted, f"{more} more answers", within_s=600.0)

    async def stop(self) -> None:
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def _client(self, rng: random.Random) -> None:
        talk = Talk(rng)
        while not self._stopping.is_set():
            talk.answered(await self._turn(talk.next_turn()))

    async def _turn(self, body: dict[str, Any]) -> str:
        began = False
        sent = {"content-type": "application/json"}
        try:
            url = f"{self._stack.url}/v1/chat/completions"
            async with self._stack.client.stream("POST", url, json={**body, "stream": True}, headers=sent) as response:
                if response.status_code != 200:
                    self.refused.append((await response.aread()).decode())
                    return ""
                async for line in response.aiter_lines():
                    if line.startswith("data: {") and '"error"' in line:
                        if not began:
                            self.refused.append(line)
                        self.cut += began
                        return ""
                    began = began or line.startswith("data: {")
                    if line == "data: [DONE]":
                        self.whole += 1
        except httpx.HTTPError as error:
            if not began:
                self.refused.append(repr(error))
            self.cut += began
        return "ok"
