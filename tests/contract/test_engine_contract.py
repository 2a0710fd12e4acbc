"""What every engine must do behind the Engine Protocol; each engine adds a maker to ENGINES.

The suite knows OpenAI's bodies and the contract only. An engine that needs an environment or a GPU runs it where these are:
tests/engines/test_contract.py runs it with vLLM. Such an engine is asked over sockets, so what it tells is waited for.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from penstock_core.errors import BadInput, Refused
from penstock_worker.engine import AnswerCut, BlockEvent, BlockRemoved, BlockStored, Engine, EngineCall
from penstock_worker.engines.sim import SimConfig, SimEngine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
WAIT_S = 60.0
LONG = 2_000
"""Tokens of an answer that is not meant to end."""


def _sim() -> Engine:
    return SimEngine(SimConfig(speed=100.0, kv_tokens=64 * 200))


ENGINES: dict[str, Callable[[], Engine]] = {"sim": _sim}


@pytest.fixture(params=sorted(ENGINES))
def make(request: pytest.FixtureRequest) -> Callable[[], Engine]:
    """Makes an engine that has not been started."""
    return ENGINES[request.param]


def _chat(content: str = "How does water turn a turbine?", **fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 20, "temperature": 0, **fields}).encode()


async def _until(true: Callable[[], bool]) -> None:
    """Wait for what an engine tells in its own time."""
    async with asyncio.timeout(WAIT_S):
        while not true():  # noqa: ASYNC110 -- heard on this same loop
            await asyncio.sleep(0.01)


def _call(body: bytes, path: str = CHAT) -> EngineCall:
    return EngineCall(request_id="contract-1", path=path, body=body)


async def _whole(engine: Engine, body: bytes, path: str = CHAT) -> bytes:
    answer = await engine.answer(_call(body, path))
    return b"".join([piece async for piece in answer])


def test_an_engine_serves_only_between_start_and_stop(make: Callable[[], Engine]) -> None:
    """Before and after, calls are refused; stop is safe without start and twice."""

    async def story() -> None:
        engine = make()
        with pytest.raises(Refused):
            await engine.answer(_call(_chat()))
        await engine.stop()
        info = await engine.start()
        assert 0 < info.max_model_tokens <= info.kv_total_tokens
        assert info.block_tokens > 0
        assert await _whole(engine, _chat())
        await engine.stop()
        await engine.stop()
        with pytest.raises(Refused):
            await engine.answer(_call(_chat()))

    asyncio.run(story())


@pytest.mark.parametrize(("path", "body"), [(CHAT, _chat()), (COMPLETIONS, b'{"prompt":"Water turns","max_tokens":20,"temperature":0}')])
def test_whole_and_streamed_answers_say_the_same(make: Callable[[], Engine], path: str, body: bytes) -> None:
    """One JSON body, or SSE events that end with [DONE]; facts of the first output are those of the end."""

    async def story() -> None:
        engine = make()
        await engine.start()
        whole = json.loads(await _whole(engine, body, path))
        choice = whole["choices"][0]
        text = choice["message"]["content"] if path == CHAT else choice["text"]
        assert text
        assert choice["finish_reason"] in ("stop", "length")
        streamed = await engine.answer(_call(json.dumps({**json.loads(body), "stream": True}).encode(), path))
        assert streamed.content_type.startswith(b"text/event-stream")
        assert streamed.facts is None or streamed.facts.prompt_tokens == whole["usage"]["prompt_tokens"]
        pieces = [piece async for piece in streamed]
        assert all(piece.startswith(b"data: ") and piece.endswith(b"\n\n") for piece in pieces)
        *events, done = b"".join(pieces).removesuffix(b"\n\n").split(b"\n\n")
        assert done == b"data: [DONE]"
        choices = [choice for event in events for choice in json.loads(event.removeprefix(b"data: "))["choices"]]
        assert "".join((c["delta"].get("content") or "") if path == CHAT else c["text"] for c in choices) == text
        await engine.stop()

    asyncio.run(story())


def test_a_repeated_prompt_hits_and_the_events_tell_its_tokens(make: Callable[[], Engine]) -> None:
    """hit_tokens is a whole number of blocks below the prompt's length; stored blocks hold the rendered prompt's tokens."""

    async def story() -> None:
        engine = make()
        events: list[BlockEvent] = []

        def listener(batch: Sequence[BlockEvent]) -> None:
            events.extend(batch)

        engine.on_block_events(listener)
        info = await engine.start()
        body = _chat("Water falls and the turbine turns. " * 60)
        await _whole(engine, body)
        answer = await engine.answer(_call(body))
        assert answer.facts is not None
        hit, prompt = answer.facts.hit_tokens, answer.facts.prompt_tokens
        assert 0 < hit < prompt
        assert hit % info.block_tokens == 0
        await answer.abort()
        rendered = engine.render(CHAT, body)
        assert len(rendered.token_ids) == prompt
        assert rendered.ends is None or (len(rendered.ends) == prompt and rendered.ends[-1] == len(rendered.text))
        await _until(lambda: _told_tokens(events, list(rendered.token_ids), info.block_tokens) >= hit)
        await engine.stop()

    asyncio.run(story())


def _told_tokens(events: Sequence[BlockEvent], tokens: list[int], block_tokens: int) -> int:
    """Leading tokens whose blocks the events tell of, each under its parent."""
    known: dict[tuple[int | None, tuple[int, ...]], int] = {}
    for event in events:
        if isinstance(event, BlockStored):
            assert len(event.token_ids) == block_tokens * len(event.hashes)
            parents = [event.parent, *event.hashes]
            for number, name in enumerate(event.hashes):
                known[parents[number], event.token_ids[number * block_tokens : (number + 1) * block_tokens]] = name
    parent: int | None = None
    for low in range(0, len(tokens), block_tokens):
        found = known.get((parent, tuple(tokens[low : low + block_tokens])))
        if found is None:
            return low
        parent = found
    return len(tokens)


def test_evicted_blocks_are_told(make: Callable[[], Engine]) -> None:
    """Prompts beyond the capacity push earlier ones out; a removed block was stored before."""

    async def story() -> None:
        engine = make()
        held: set[int] = set()
        removed = 0

        def listener(batch: Sequence[BlockEvent]) -> None:
            nonlocal removed
            for event in batch:
                if isinstance(event, BlockStored):
                    held.update(event.hashes)
                elif isinstance(event, BlockRemoved):
                    assert held.issuperset(event.hashes)
                    held.difference_update(event.hashes)
                    removed += len(event.hashes)
                else:
                    held.clear()

        engine.on_block_events(listener)
        info = await engine.start()
        for number in range(8):
            await _whole(engine, _chat(f"{number} water turns. " * (info.kv_total_tokens // 16)))
        await _until(lambda: removed > 0)
        await _until(lambda: len(held) * info.block_tokens <= info.kv_total_tokens)
        await engine.stop()

    asyncio.run(story())


def test_cancelling_a_call_and_aborting_an_answer_free_everything(make: Callable[[], Engine]) -> None:
    """Nothing runs or waits at once, and no KV is in use soon; abort is safe to repeat, and cuts whoever still reads."""

    async def story() -> None:
        engine = make()
        await engine.start()
        task = asyncio.create_task(engine.answer(_call(_chat(max_tokens=LONG, ignore_eos=True))))
        await asyncio.sleep(0)
        assert engine.load().waiting + engine.load().running == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        answer = await engine.answer(_call(_chat(max_tokens=LONG, ignore_eos=True, stream=True)))
        await answer.abort()
        await answer.abort()
        load = engine.load()
        assert (load.running, load.waiting, load.prefill_tokens) == (0, 0, 0)
        with pytest.raises(AnswerCut):
            [piece async for piece in answer]
        await _until(lambda: engine.load().kv_used_tokens == 0)
        await engine.stop()

    asyncio.run(story())


def test_stopping_cuts_running_answers(make: Callable[[], Engine]) -> None:
    """A reader gets AnswerCut, not a silent end."""

    async def story() -> None:
        engine = make()
        await engine.start()
        answer = await engine.answer(_call(_chat(max_tokens=LONG, ignore_eos=True, stream=True)))
        await engine.stop()
        with pytest.raises(AnswerCut):
            async for _ in answer:
                pass

    asyncio.run(story())


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"messages":3}', b'{"messages":[]}', _chat(max_tokens=-1), _chat(max_tokens=10**12), _chat(n="x"), _chat("\n a" * 9999)],
    ids=["empty", "list", "messages", "no messages", "negative", "absurd", "n", "too long"],
)  # fmt: skip
def test_bad_bodies_are_bad_input(make: Callable[[], Engine], body: bytes) -> None:
    """The engine raises BadInput, or answers with a status that says so; nothing is left behind."""

    async def story() -> None:
        engine = make()
        await engine.start()
        try:
            answer = await engine.answer(_call(body))
        except BadInput:
            pass
        else:
            assert 400 <= answer.status < 500
            await answer.abort()
        load = engine.load()
        assert (load.running, load.waiting) == (0, 0)
        await _until(lambda: engine.load().kv_used_tokens == 0)
        await engine.stop()

    asyncio.run(story())


def test_an_answer_of_its_own_hands_nothing_over(make: Callable[[], Engine]) -> None:
    """It leaves the counts where they were; nothing is unclaimed."""

    async def story() -> None:
        engine = make()
        await engine.start()
        before = engine.handover()
        await _whole(engine, _chat())
        assert engine.handover() == before
        assert before.unclaimed_tokens == 0
        await engine.stop()

    asyncio.run(story())


def test_metrics_are_prometheus_text(make: Callable[[], Engine]) -> None:
    """Under vLLM's names."""

    async def story() -> None:
        engine = make()
        await engine.start()
        await _whole(engine, _chat())
        text = engine.metrics_text()
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:cache_config_info"):
            assert f"\n{name}{{" in "\n" + text
        await engine.stop()

    asyncio.run(story())
