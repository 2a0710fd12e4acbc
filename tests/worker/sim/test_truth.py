"""The text of an answer proves the KV it was made of: the reference predicts it, and one wrong byte changes it."""

import asyncio
import random
from typing import Any

import numpy as np
import pytest
from penstock_worker.engines.sim import SimEngine, payload, reference_text
from penstock_worker.engines.sim.request import parse
from penstock_worker.engines.sim.tokenizer import Tokenizer


def test_fifty_random_prompts_under_tight_kv_give_the_predicted_text(lab: Any) -> None:
    """With evictions and preemptions going on, and shared beginnings among the prompts."""

    async def story() -> None:
        async with lab.engine(kv_tokens=64 * 60) as engine:
            rnd = random.Random(7)
            bodies = [lab.body(rnd.randint(50, 1_500), seed=rnd.randint(0, 9)) for _ in range(50)]
            events = lab.collect_events(engine)
            texts = await asyncio.gather(*(lab.text(engine, body) for body in bodies))
            context = engine.config.context_tokens
            assert texts == [reference_text(body, max_model_tokens=context) for body in bodies]
            assert engine.store.used == 0
            assert "vllm:num_preemptions_total" in engine.metrics_text()
            assert engine._batch.preemptions > 0
            assert engine._batch.hit_tokens > 0
            assert sum(type(event).__name__ == "BlockRemoved" for event in events) > 0

    asyncio.run(story())


@pytest.mark.parametrize("block_tokens", [1, 3, 64])
def test_every_length_around_a_block_gives_the_predicted_text(lab: Any, block_tokens: int) -> None:
    """Prompts that end before, at and behind a block's border; given as token ids."""

    async def story() -> None:
        async with lab.engine(block_tokens=block_tokens, kv_tokens=4096) as engine:
            for length in (1, 2, 3, 4, 63, 64, 65, 127, 128, 129):
                body = lab.with_fields(b"{}", prompt=list(range(7, 7 + length)), max_tokens=70, ignore_eos=True)
                for _ in range(2):  # the second time from the cache
                    text = await lab.text(engine, body, lab.completions)
                    assert text == reference_text(body, lab.completions, block_tokens=block_tokens), length

    asyncio.run(story())


def test_a_conversation_goes_on_from_the_cached_answer(lab: Any) -> None:
    """The next turn finds prompt and answer of the last in the cache, and its text is the predicted one."""

    async def story() -> None:
        async with lab.engine() as engine:
            messages = [{"role": "user", "content": lab.prompt(100)}]
            held = 0
            for turn in range(4):
                body = lab.with_fields(b"{}", messages=messages, max_tokens=100, ignore_eos=True)
                answer = await lab.json(engine, body)
                text = answer["choices"][0]["message"]["content"]
                assert text == reference_text(body)
                usage = answer["usage"]
                assert usage["prompt_tokens_details"]["cached_tokens"] == held
                held = (usage["total_tokens"] - 1) // 64 * 64  # the newest word's KV is not computed
                messages += [{"role": "assistant", "content": text}, {"role": "user", "content": f"And turn {turn}?"}]

    asyncio.run(story())


async def _twice(lab: Any, engine: SimEngine, between: Any) -> tuple[str, str, str]:
    """A long prompt's text, what it is after `between` did something to the store, and the prediction."""
    body = lab.body(300, max_tokens=8)
    first = await lab.text(engine, body)
    between(engine.store)
    return first, await lab.text(engine, body), reference_text(body)


def test_one_byte_flipped_in_a_cached_block_changes_the_text(lab: Any) -> None:
    """Whichever cached block it is."""

    async def story() -> None:
        for block in range(4):
            async with lab.engine() as engine:

                def flip(store: Any, block: int = block) -> None:
                    assert store.refs[block] == 0
                    assert store._hash_of[block] is not None
                    store.rows[block, 17] ^= 1

                first, second, predicted = await _twice(lab, engine, flip)
                assert first == predicted
                assert second != predicted

    asyncio.run(story())


def test_two_cached_blocks_exchanged_change_the_text(lab: Any) -> None:
    """The right content at the wrong place is wrong."""

    async def story() -> None:
        async with lab.engine() as engine:

            def swap(store: Any) -> None:
                store.rows[[0, 1]] = store.rows[[1, 0]]

            first, second, predicted = await _twice(lab, engine, swap)
            assert first == predicted != second

    asyncio.run(story())


def test_a_block_lost_while_the_answer_is_made_changes_the_rest_of_it(lab: Any) -> None:
    """Every word reads the store: what came before stays, what comes after is wrong."""

    async def story() -> None:
        async with lab.engine(speed=20) as engine:
            body = lab.body(300, max_tokens=40, ignore_eos=True, stream=True)
            answer = await lab.start(engine, body, lab.chat)
            engine.store.rows[:] = 0
            pieces = b"".join([piece async for piece in answer]).split(b"\n\n")
            words = [piece.split(b'"content":"')[1].split(b'"')[0].decode() for piece in pieces if b'"content":"' in piece]
            predicted = reference_text(body)
            assert "".join(words) != predicted
            assert "".join(words).split()[0] == predicted.split()[0]

    asyncio.run(story())


def test_with_the_payload_stubbed_out_the_text_is_wrong(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that keeps no KV cannot give the predicted text."""

    async def story() -> tuple[str, str]:
        async with lab.engine() as engine:
            body = lab.body(200)
            monkeypatch.setattr(engine.store, "write", lambda block, row: None)
            return await lab.text(engine, body), reference_text(body)

    text, predicted = asyncio.run(story())
    assert text != predicted


def test_engines_agree_within_a_generation_and_differ_between_two(lab: Any) -> None:
    """Speed, capacity and history do not matter; the KV generation does."""

    async def story() -> None:
        body = lab.body(200)
        async with lab.engine() as one, lab.engine(speed=500, kv_tokens=6_400) as two, lab.engine(kv_generation="other") as other:
            await lab.text(two, lab.body(90, seed=3))
            texts = [await lab.text(engine, body) for engine in (one, two, other)]
        assert texts[0] == texts[1] == reference_text(body)
        assert texts[2] == reference_text(body, kv_generation="other") != texts[0]

    asyncio.run(story())


def test_salts_and_adapters_never_share_kv(lab: Any) -> None:
    """Another salt, or an adapter, finds nothing cached and gives another text; the same finds its own."""

    async def story() -> None:
        async with lab.engine(adapters=("tuned",)) as engine:
            events = lab.collect_events(engine)
            body, tuned = lab.body(200), lab.with_fields(lab.body(200), model="tuned")
            plain = await lab.json(engine, body)
            salted = await lab.json(engine, body, salt="tenant")
            again = await lab.json(engine, body, salt="tenant")
            adapted = await lab.json(engine, tuned)
            hits = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (plain, salted, again, adapted)]
            assert hits[:2] == [0, 0]
            assert hits[2] > 0
            assert hits[3] == 0
            texts = [answer["choices"][0]["message"]["content"] for answer in (plain, salted, again, adapted)]
            assert texts == [
                reference_text(body),
                reference_text(body, salt="tenant"),
                reference_text(body, salt="tenant"),
                reference_text(tuned, adapter="tuned"),
            ]
            assert len(set(texts)) == 3
            assert {(event.salt, event.adapter) for event in events} == {("", ""), ("tenant", ""), ("", "tuned")}

    asyncio.run(story())


def test_n_answers_differ_and_are_each_predicted(lab: Any) -> None:
    """Choices of one request share the prompt's blocks."""

    async def story() -> None:
        async with lab.engine() as engine:
            body = lab.body(200, n=3, max_tokens=20)
            answer = await lab.json(engine, body)
            texts = [choice["message"]["content"] for choice in answer["choices"]]
            assert texts == [reference_text(body, choice=choice) for choice in range(3)]
            assert len(set(texts)) == 3
            assert engine._batch.hit_tokens > 0

    asyncio.run(story())


def test_the_next_word_reads_every_row_of_the_context(lab: Any) -> None:
    """Flipping any one bit of any row of a context gives another hash (a word may still coincide by chance)."""
    rows = np.frombuffer(payload.root_row("g", "", "") * 40, dtype=np.uint8).reshape(40, 32).copy()
    words = set()
    for row in range(40):
        rows[row, row % 32] ^= 1
        words.add(payload.next_word(rows.tobytes(), 0))
        rows[row, row % 32] ^= 1
    assert len(words) >= 39


def test_the_reference_is_the_definition_written_out(lab: Any) -> None:
    """Against a word-for-word slow computation over token lists."""
    body = lab.body(90, max_tokens=50, ignore_eos=True)
    tokens = memoryview(parse(lab.chat, body).prompt.ids(Tokenizer())).cast("I").tolist()
    words = []
    for number in range(50):
        rows, row = [], payload.root_row("sim-1", "", "")
        for start in range(0, len(tokens), 64):
            block = tokens[start : start + 64]
            packed = b"".join(token.to_bytes(4, "little") for token in block)
            row = payload.full_row(row, packed) if len(block) == 64 else payload.longer_row(row, block)
            rows.append(row)
        word = payload.next_word(b"".join(rows), 0)
        words.append(payload.WORDS[word])
        tokens.append((payload.SPACED_WORD_IDS if number else payload.WORD_IDS)[word])
    assert reference_text(body) == " ".join(words)
