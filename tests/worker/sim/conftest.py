"""A bench for sim engines: bodies, running engines, answers read to their end."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from penstock_worker.engine import BlockEvent, EngineCall
from penstock_worker.engines.sim import SimConfig, SimEngine

CHAT = "/v1/chat/completions"
_TEXT = "the a penstock water gate turbine opens slowly because international pressure 1234 rises, falls; and the valve_7 (left) turns."
_WORDS = _TEXT.split()


class Lab:
    """What the tests of this folder share; one a test."""

    chat = CHAT
    completions = "/v1/completions"
    prefill_params: ClassVar[dict[str, Any]] = {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
    }

    def config(self, **settings: Any) -> SimConfig:
        return SimConfig(**{"speed": 200.0, "fleet_token": "a made-up token", **settings})

    @asynccontextmanager
    async def engine(self, **settings: Any) -> AsyncIterator[SimEngine]:
        engine = SimEngine(self.config(**settings))
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()

    def prompt(self, words: int, seed: int = 0) -> str:
        rnd = random.Random(seed)
        return " ".join(rnd.choice(_WORDS) for _ in range(words))

    def body(self, words: int = 30, seed: int = 0, **fields: Any) -> bytes:
        return json.dumps({"model": "sim", "messages": [{"role": "user", "content": self.prompt(words, seed)}], **fields}).encode()

    async def start(self, engine: SimEngine, body: bytes, path: str = CHAT, salt: str = "") -> Any:
        return await engine.answer(EngineCall(request_id="req", path=path, body=body, salt=salt))

    async def json(self, engine: SimEngine, body: bytes, path: str = CHAT, salt: str = "") -> dict[str, Any]:
        answer = await self.start(engine, body, path, salt)
        whole: dict[str, Any] = json.loads(b"".join([piece async for piece in answer]))
        return whole

    async def text(self, engine: SimEngine, body: bytes, path: str = CHAT, salt: str = "") -> str:
        choice = (await self.json(engine, body, path, salt))["choices"][0]
        return str(choice["message"]["content"] if path == CHAT else choice["text"])

    async def events(self, engine: SimEngine, body: bytes, path: str = CHAT) -> list[Any]:
        """Decoded SSE events; the last is the string [DONE]."""
        answer = await self.start(engine, body, path)
        stream = b"".join([piece async for piece in answer])
        assert stream.endswith(b"\n\n")
        data = [event.removeprefix(b"data: ") for event in stream[:-2].split(b"\n\n")]
        return [event.decode() if event == b"[DONE]" else json.loads(event) for event in data]

    def with_fields(self, body: bytes, **fields: Any) -> bytes:
        return json.dumps({**json.loads(body), **fields}).encode()

    async def prefill(self, engine: SimEngine, body: bytes) -> dict[str, Any]:
        """The prefill leg of a hand-over: the kv_transfer_params it answers."""
        leg = self.with_fields(body, stream=False, max_tokens=1, kv_transfer_params=self.prefill_params)
        return dict((await self.json(engine, leg))["kv_transfer_params"])

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition, at most a minute."""
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 -- the engine has no event for every condition a test waits for
                await asyncio.sleep(0.001)
        assert condition(), what

    def collect_events(self, engine: SimEngine) -> list[BlockEvent]:
        collected: list[BlockEvent] = []

        def listener(events: Sequence[BlockEvent]) -> None:
            collected.extend(events)

        engine.on_block_events(listener)
        return collected


@pytest.fixture
def lab() -> Lab:
    return Lab()
