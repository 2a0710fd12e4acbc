"""Nothing leaks: requests end in every phase, engines stop, and blocks, tasks and counts are back where they were."""

import asyncio
from typing import Any

import pytest
from penstock_core.errors import Refused
from penstock_core.profile import PROFILES
from penstock_worker.engine import AnswerCut, BlockRemoved, BlockStored, EngineCall
from penstock_worker.engines.sim import SimConfig, SimEngine, reference_text
from prometheus_client.parser import text_string_to_metric_families


def _empty(engine: SimEngine) -> bool:
    load = engine.load()
    return (load.running, load.waiting, load.prefill_tokens, load.kv_used_tokens, len(engine._answers)) == (0, 0, 0, 0, 0)


def test_cancelling_a_call_that_waits_frees_it(lab: Any) -> None:
    """In the waiting queue (one stream runs) as in the middle of a prefill."""

    async def story() -> None:
        async with lab.engine(speed=0.01, kv_tokens=64 * 400) as engine:
            first = asyncio.create_task(lab.text(engine, lab.body(9_000, seed=1)))
            second = asyncio.create_task(lab.text(engine, lab.body(9_000, seed=2)))
            await lab.until(lambda: (engine.load().running, engine.load().waiting) == (1, 1), "one prefills, one waits")
            assert engine.load().prefill_tokens > 0
            second.cancel()
            await lab.until(lambda: engine.load().waiting == 0, "the waiting one is gone")
            first.cancel()
            await lab.until(lambda: _empty(engine), "the prefilling one is gone")
            for task in (first, second):
                with pytest.raises(asyncio.CancelledError):
                    await task

    asyncio.run(story())


def test_aborting_an_answer_frees_it_at_once_and_cuts_its_reader(lab: Any) -> None:
    """Also when it is aborted twice; the cut is an error, not a silent end."""

    async def story() -> None:
        async with lab.engine(speed=5) as engine:
            answer = await lab.start(engine, lab.body(200, max_tokens=5_000, ignore_eos=True, stream=True))
            reader = asyncio.create_task(_read(answer))
            assert engine.load().running == 1
            await answer.abort()
            assert _empty(engine)
            await answer.abort()
            with pytest.raises(AnswerCut):
                await reader
            assert 'finished_reason="abort"} 1' in engine.metrics_text()
            assert await lab.text(engine, lab.body(200)) == reference_text(lab.body(200))

    asyncio.run(story())


async def _read(answer: Any) -> bytes:
    return b"".join([piece async for piece in answer])


def test_cancelling_in_the_pass_that_would_end_it_leaves_the_engine_in_order(lab: Any) -> None:
    """The pass ends with a word for nobody; the next request is answered."""

    async def story() -> None:
        async with lab.engine(speed=0.5) as engine:
            task = asyncio.create_task(lab.text(engine, lab.body(20, max_tokens=1)))
            await lab.until(lambda: engine.load().running == 1, "its only pass runs")
            assert engine.load().prefill_tokens == 0
            task.cancel()
            await asyncio.wait((task,))
            assert _empty(engine)
            assert await lab.text(engine, lab.body(20, max_tokens=2)) == reference_text(lab.body(20, max_tokens=2))
            assert _empty(engine)

    asyncio.run(story())


def test_a_full_queue_refuses_and_takes_requests_again_later(lab: Any) -> None:
    """max_waiting requests wait, one more is refused as full, n choices count n times."""

    async def story() -> None:
        async with lab.engine(speed=0.1, max_waiting=3) as engine:
            waiting = [asyncio.create_task(lab.text(engine, lab.body(20_000, seed=1)))]
            await lab.until(lambda: engine.load().running == 1, "the first runs")
            waiting += [asyncio.create_task(lab.text(engine, lab.body(10, seed=seed))) for seed in (2, 3)]
            await lab.until(lambda: engine.load().waiting == 2, "two wait")
            with pytest.raises(Refused, match="full"):
                await lab.text(engine, lab.body(10, n=2))
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            answer = await lab.start(engine, lab.body(10))
            await answer.abort()
            assert _empty(engine)

    asyncio.run(story())


def test_stopping_cuts_answers_and_leaves_no_task(lab: Any) -> None:
    """One that streams and one that waits for its first word; afterwards calls are refused."""

    async def story() -> None:
        tasks = asyncio.all_tasks()
        engine = SimEngine(lab.config(speed=1.0))
        await engine.start()
        streaming = await lab.start(engine, lab.body(max_tokens=5_000, ignore_eos=True, stream=True))
        waiting = asyncio.create_task(lab.text(engine, lab.body(20_000)))
        await lab.until(lambda: engine.load().waiting + engine.load().running == 2, "both are in")
        await engine.stop()
        for cut in (_read(streaming), waiting):
            with pytest.raises(AnswerCut):
                await cut
        assert _empty(engine)
        with pytest.raises(Refused, match="draining"):
            await lab.text(engine, lab.body())
        await engine.stop()
        assert asyncio.all_tasks() == tasks

    asyncio.run(story())


def test_a_failure_of_the_engine_itself_cuts_every_answer(
    lab: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Logged; nobody hangs, and later calls are refused."""

    async def story() -> None:
        async with lab.engine() as engine:
            answer = await lab.start(engine, lab.body(max_tokens=5_000, ignore_eos=True, stream=True))
            monkeypatch.setattr(engine._batch, "step", lambda: 1 / 0)
            with pytest.raises(AnswerCut):
                await _read(answer)
            with pytest.raises(Refused):
                await lab.text(engine, lab.body())
            assert "the engine failed" in caplog.text

    asyncio.run(story())


def test_events_tell_exactly_which_blocks_are_held(lab: Any) -> None:
    """Applied in order they give the store's own list, with evictions going on."""

    async def story() -> None:
        async with lab.engine(kv_tokens=64 * 30) as engine:
            events = lab.collect_events(engine)
            for seed in range(12):
                await lab.text(engine, lab.body(100 + 40 * seed, seed=seed % 3))
            held: dict[int, int | None] = {}
            for event in events:
                if isinstance(event, BlockStored):
                    parent = event.parent
                    assert len(event.token_ids) == 64 * len(event.hashes)
                    for name in event.hashes:
                        assert parent is None or parent in held
                        held[name], parent = parent, name
                elif isinstance(event, BlockRemoved):
                    for name in event.hashes:
                        del held[name]
            assert held.keys() == engine.store._by_hash.keys()
            assert any(isinstance(event, BlockRemoved) for event in events)

    asyncio.run(story())


def test_a_second_listener_is_refused(lab: Any) -> None:
    """One listener, as the contract says."""

    async def story() -> None:
        async with lab.engine() as engine:
            lab.collect_events(engine)
            with pytest.raises(RuntimeError, match="allowed: one"):
                lab.collect_events(engine)

    asyncio.run(story())


def test_metrics_carry_vllms_names(lab: Any) -> None:
    """Those that protocol.md §3 lists, as text that prometheus-client can read back."""

    async def story() -> str:
        async with lab.engine() as engine:
            await lab.text(engine, lab.body(200, max_tokens=10))
            await lab.text(engine, lab.body(200, max_tokens=10))
            return engine.metrics_text()

    text = asyncio.run(story())
    samples = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    assert samples["vllm:num_requests_running"] == samples["vllm:num_requests_waiting"] == samples["vllm:kv_cache_usage_perc"] == 0
    assert samples["vllm:prefix_cache_queries_total"] == samples["vllm:prompt_tokens_total"] > 0
    assert samples["vllm:prefix_cache_hits_total"] > 0
    assert samples["vllm:time_to_first_token_seconds_count"] == 2
    assert samples["vllm:inter_token_latency_seconds_count"] == 18
    assert samples["vllm:cache_config_info"] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("speed", 0),
        ("block_tokens", 0),
        ("max_waiting", 0),
        ("kv_tokens", 100),
        ("claim_seconds", 0),
        ("transfer_port", 70_000),
        ("model", ""),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: Any) -> None:
    """Field, value, allowed range."""
    with pytest.raises(ValueError, match=f"{field} is {value!r}; allowed"):
        SimConfig(**{field: value})


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_speed_divides_every_duration(name: str) -> None:
    """The engine announces the profile it really has."""
    profile, fast = PROFILES[name], SimConfig(profile=PROFILES[name], speed=8.0).timing()
    for new in (1, 100, 5_000):
        assert fast.prefill_s(new, 50) == pytest.approx(profile.prefill_s(new, 50) / 8)
    for streams in (1, 50, 200):
        assert fast.decode_s(streams, 20_000) == pytest.approx(profile.decode_s(streams, 20_000) / 8)
    assert fast.transfer_s(1_000) == pytest.approx(profile.transfer_s(1_000) / 8)
    assert fast.start_s == profile.start_s / 8


def test_the_engine_says_what_it_is(lab: Any) -> None:
    """EngineInfo follows the config; render agrees with what the engine counts."""

    async def story() -> None:
        engine = SimEngine(lab.config(model="m", kv_tokens=6_400, adapters=("a",), kv_generation="g"))
        info = await engine.start()
        assert (info.model, info.kv_total_tokens, info.block_tokens, info.max_model_tokens) == ("m", 6_400, 64, 6_400)
        assert (info.connector, info.kv_generation, info.adapters, info.exact) == ("nixl", "g", ("a",), True)
        assert info.profile.kv_tokens == 6_400
        body = lab.body(50, max_tokens=1)
        answer = await engine.answer(EngineCall(request_id="r", path=lab.chat, body=body))
        assert answer.facts is not None
        assert len(engine.render(lab.chat, body).token_ids) == answer.facts.prompt_tokens
        await engine.stop()

    asyncio.run(story())
