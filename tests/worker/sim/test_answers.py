"""Answers have OpenAI's form, streamed or whole, with the counts and ends that the body asked for."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_core.errors import BadInput
from penstock_worker.engines.sim import reference_text
from penstock_worker.engines.sim.stops import StopText


def test_a_stream_begins_with_the_role_and_ends_with_reason_usage_and_done(lab: Any) -> None:
    """One event a word; the joined text is the predicted one."""

    async def story() -> None:
        async with lab.engine() as engine:
            body = lab.body(max_tokens=5, stream=True, stream_options={"include_usage": True})
            *events, done = await lab.events(engine, body)
            assert done == "[DONE]"
            first, *words, last, usage = events
            assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
            assert len(words) == 5
            assert "".join(event["choices"][0]["delta"]["content"] for event in words) == reference_text(body)
            assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "length")
            assert usage["choices"] == []
            assert usage["usage"]["completion_tokens"] == 5
            assert usage["usage"]["total_tokens"] == usage["usage"]["prompt_tokens"] + 5
            assert {event["id"] for event in events} == {"chatcmpl-req"}
            assert {(event["object"], event["model"]) for event in events} == {("chat.completion.chunk", "sim")}
            assert not any("usage" in event for event in events[:-1])

    asyncio.run(story())


def test_continuous_usage_counts_up(lab: Any) -> None:
    """Every event with text carries the counts so far."""

    async def story() -> None:
        async with lab.engine() as engine:
            options = {"include_usage": True, "continuous_usage_stats": True}
            events = await lab.events(engine, lab.body(max_tokens=4, stream=True, stream_options=options))
            counts = [event["usage"]["completion_tokens"] for event in events[:-1] if "usage" in event]
            assert counts == [1, 2, 3, 4, 4, 4]

    asyncio.run(story())


def test_a_completion_streams_text_and_echoes_its_prompt(lab: Any) -> None:
    """The answer goes on with the prompt's text; echo puts the prompt in front."""

    async def story() -> None:
        async with lab.engine() as engine:
            body = lab.with_fields(b"{}", model="sim", prompt='Say "hi"\n', max_tokens=3, echo=True, stream=True)
            events = await lab.events(engine, body, lab.completions)
            text = "".join(event["choices"][0]["text"] for event in events[:-1])
            assert text == 'Say "hi"\n' + reference_text(body, lab.completions)
            assert reference_text(body, lab.completions).startswith(" ")
            assert events[0]["object"] == "text_completion"
            whole = await lab.json(engine, lab.with_fields(body, stream=False), lab.completions)
            assert whole["choices"][0]["text"] == text

    asyncio.run(story())


def test_an_answer_ends_by_itself_unless_told_otherwise(lab: Any) -> None:
    """Without max_tokens it stops after 16..256 words; min_tokens moves that end, ignore_eos removes it."""

    async def story() -> None:
        async with lab.engine() as engine:
            free = await lab.json(engine, lab.body())
            count = free["usage"]["completion_tokens"]
            assert (free["choices"][0]["finish_reason"], 16 <= count <= 256) == ("stop", True)
            cut = await lab.json(engine, lab.body(max_tokens=count - 1))
            assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", count - 1)
            loose = await lab.json(engine, lab.body(max_completion_tokens=count))
            assert (loose["choices"][0]["finish_reason"], loose["usage"]["completion_tokens"]) == ("stop", count)
            longer = await lab.json(engine, lab.body(min_tokens=count + 9, max_tokens=count + 50))
            assert (longer["choices"][0]["finish_reason"], longer["usage"]["completion_tokens"]) == ("stop", count + 9)
            on = await lab.json(engine, lab.body(ignore_eos=True, max_tokens=300))
            assert (on["choices"][0]["finish_reason"], on["usage"]["completion_tokens"]) == ("length", 300)

    asyncio.run(story())


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer_before_it(lab: Any, stream: bool) -> None:
    """Also one that spans words; nothing of it is sent, and the blocks are free at once."""

    async def story() -> None:
        async with lab.engine() as engine:
            full = reference_text(lab.body(max_tokens=20))
            words = full.split()
            stop = words[9][-2:] + " " + words[10][:2]
            body = lab.body(max_tokens=20, stop=["never", stop], stream=stream)
            if stream:
                choices = [event["choices"][0] for event in (await lab.events(engine, body))[:-1]]
                text = "".join(choice["delta"].get("content", "") for choice in choices)
                reason = choices[-1]["finish_reason"]
            else:
                choice = (await lab.json(engine, body))["choices"][0]
                text, reason = choice["message"]["content"], choice["finish_reason"]
            assert (text, reason) == (full[: full.index(stop)], "stop")
            assert reference_text(body) == text
            assert engine.store.used == 0

    asyncio.run(story())


@given(
    st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=12), st.lists(st.text("ab ", min_size=1, max_size=5), max_size=3)
)
def test_stop_texts_cut_at_the_first_word_that_completes_one(words: list[str], stops: list[str]) -> None:
    """Whatever the words and stop texts: the same as searching the text so far after each word."""
    stopper, out = StopText(stops), ""
    for number, word in enumerate(words):
        out += stopper.add(word)
        so_far = "".join(words[: number + 1])
        places = [so_far.find(stop) for stop in stops if stop in so_far]
        if places:
            assert stopper.stopped
            assert out + stopper.rest() == so_far[: min(places)]
            return
        assert not stopper.stopped
    assert out + stopper.rest() == "".join(words)


def test_streamed_choices_carry_their_index(lab: Any) -> None:
    """n = 3: three roles, three reasons, each text its own."""

    async def story() -> None:
        async with lab.engine() as engine:
            body = lab.body(n=3, max_tokens=6, stream=True)
            events = (await lab.events(engine, body))[:-1]
            for index in range(3):
                mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
                assert mine[0]["delta"]["role"] == "assistant"
                assert "".join(choice["delta"].get("content", "") for choice in mine) == reference_text(body, choice=index)
                assert mine[-1]["finish_reason"] == "length"

    asyncio.run(story())


def test_the_facts_are_there_with_the_first_output(lab: Any) -> None:
    """Prompt tokens and the engine's own hits, before the answer is read."""

    async def story() -> None:
        async with lab.engine() as engine:
            body = lab.body(200, max_tokens=2)
            usage = (await lab.json(engine, body))["usage"]
            answer = await lab.start(engine, body)
            assert answer.status == 200
            assert answer.content_type == b"application/json"
            assert answer.facts.prompt_tokens == usage["prompt_tokens"]
            assert answer.facts.hit_tokens == (usage["prompt_tokens"] - 1) // 64 * 64
            await answer.abort()

    asyncio.run(story())


def test_a_slow_reader_gets_joined_events_and_misses_none(lab: Any) -> None:
    """The engine does not wait for it."""

    async def story() -> None:
        async with lab.engine() as engine:
            body = lab.body(max_tokens=40, ignore_eos=True, stream=True)
            answer = await lab.start(engine, body)
            await lab.until(lambda: not engine._answers, "the engine is through")
            pieces = [piece async for piece in answer]
            assert len(pieces) == 1
            assert pieces[0].count(b"data: ") == 1 + 40 + 1 + 1
            assert pieces[0].endswith(b"data: [DONE]\n\n")

    asyncio.run(story())


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"max_tokens": 1 << 70}, "max_tokens"), ({"max_completion_tokens": 6_400}, "max_completion_tokens")],
)
def test_more_tokens_than_the_context_has_are_refused_by_name(lab: Any, fields: dict[str, Any], param: str) -> None:
    """Field, value and what is allowed."""

    async def story() -> None:
        async with lab.engine(kv_tokens=6_400) as engine:
            with pytest.raises(BadInput, match="allowed: 1 to 63") as caught:
                await lab.text(engine, lab.body(**fields))
            assert caught.value.param == param

    asyncio.run(story())


def test_a_prompt_longer_than_the_context_is_refused_by_name(lab: Any) -> None:
    """A prompt that leaves room for no word is too long; one token less is answered with one word."""

    async def story() -> None:
        async with lab.engine(kv_tokens=640) as engine:
            for length, fits in ((639, True), (640, False)):
                body = json.dumps({"prompt": list(range(length))}).encode()
                if fits:
                    answer = await lab.json(engine, body, lab.completions)
                    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (1, "length")
                else:
                    with pytest.raises(BadInput, match="prompt has 640 tokens; allowed: 1 to 639") as caught:
                        await lab.text(engine, body, lab.completions)
                    assert caught.value.param == "prompt"

    asyncio.run(story())
