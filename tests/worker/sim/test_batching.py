"""Passes by arithmetic: a prompt token costs 1 s, a decoding stream 100 s, a token of its context 0.001 s."""

import time
from typing import Any

import msgspec
import pytest
from penstock_core.profile import DecodePiece, EngineProfile
from penstock_worker.engines.sim import payload
from penstock_worker.engines.sim.batching import Batch, Pass
from penstock_worker.engines.sim.blocks import BlockStore
from penstock_worker.engines.sim.sequence import Sequence

_TIMING = EngineProfile(
    name="story",
    source="made up",
    kv_tokens=640,
    kv_bytes_per_token=1,
    pass_tokens=100,
    max_streams=8,
    prefill_per_token_s=1.0,
    decode_small=DecodePiece(0.0, 100.0, 0.001),
)


def _batch(blocks: int = 10, **timing: Any) -> Batch:
    return Batch(BlockStore(blocks, 64), msgspec.structs.replace(_TIMING, **timing))


def _sequence(batch: Batch, prompt: int, target: int = 4, seed: int = 1, **fields: Any) -> Sequence:
    ids = b"".join((seed * 100_000 + token).to_bytes(4, "little") for token in range(prompt))
    sequence = Sequence(ids, target=target, root=payload.root_row("", "", ""), root_hash=0, **fields)
    batch.submit(sequence)
    return sequence


def _step(batch: Batch) -> Pass:
    done = batch.step()
    assert done is not None
    for sequence, _ in done.words:
        if sequence.done:
            batch.finish(sequence)
    return done


def test_a_prompt_gives_its_first_word_in_the_pass_it_ends_in() -> None:
    """Then one word a pass; the pass lasts what its tokens and streams cost."""
    batch = _batch()
    sequence = _sequence(batch, 70, target=3)
    first = _step(batch)
    assert (first.seconds, first.new_tokens, first.streams) == (70.0, 70, 0)
    assert [s for s, _ in first.words] == [sequence]
    second = _step(batch)
    assert (second.seconds, second.new_tokens, second.streams, second.context_tokens) == (pytest.approx(100.071), 0, 1, 71)
    _step(batch)
    assert sequence.ended
    assert batch.step() is None
    assert batch.store.free == 10


def test_a_long_prompt_is_computed_in_chunks_and_streams_use_the_budget_too() -> None:
    """100 tokens a pass: with one stream decoding, 99 are left for the prompt."""
    batch = _batch()
    _sequence(batch, 10, target=9)
    _step(batch)
    long = _sequence(batch, 250, seed=2)
    assert batch.prefill_tokens == 250
    chunks = [_step(batch) for _ in range(3)]
    assert [chunk.new_tokens for chunk in chunks] == [99, 99, 52]
    assert [len(chunk.words) for chunk in chunks] == [1, 1, 2]
    assert batch.prefill_tokens == 0
    assert long.generated == 1


def test_several_prompts_share_a_pass_in_their_order() -> None:
    """The third gets what the first two leave."""
    batch = _batch()
    three = [_sequence(batch, 40, seed=seed) for seed in (1, 2, 3)]
    done = _step(batch)
    assert (done.new_tokens, [s for s, _ in done.words]) == (100, three[:2])
    assert (three[2].computed, batch.prefill_tokens) == (20, 20)
    assert _step(batch).new_tokens == 20


def test_blocks_are_found_from_the_start_of_the_pass_that_fills_them() -> None:
    """A second request with the same beginning in the same pass computes only what differs, and the last block."""
    batch = _batch(pass_tokens=1_000)
    _sequence(batch, 200)
    twin = _sequence(batch, 200)
    done = _step(batch)
    assert (done.new_tokens, twin.hit_tokens) == (200 + 8, 192)
    assert batch.store.used == 5  # three shared, one each of their own


def test_a_prompt_that_is_all_cached_computes_its_last_block_again() -> None:
    """The next word needs its last token computed; the duplicate block gives way to the cached one."""
    batch = _batch(pass_tokens=1_000)
    _sequence(batch, 128, target=1)
    _step(batch)
    again = _sequence(batch, 128, target=1)
    done = _step(batch)
    assert (again.hit_tokens, done.new_tokens) == (64, 64)
    assert batch.store.cached == 2


def test_answers_are_cached_too() -> None:
    """The next turn finds prompt and answer, all but the part of a block at the end."""
    batch = _batch(pass_tokens=1_000)
    sequence = _sequence(batch, 100, target=60)
    while not sequence.ended:
        _step(batch)
    turn = Sequence(
        sequence.tokens.tobytes() + (5).to_bytes(4, "little"), target=1, root=payload.root_row("", "", ""), root_hash=0, owner=None
    )
    batch.submit(turn)
    _step(batch)
    assert turn.hit_tokens == 128


def test_a_stream_without_room_preempts_the_youngest_which_computes_again_later() -> None:
    """Three blocks: the younger one loses its block at the older one's growth, and both end with all their words."""
    batch = _batch(blocks=3, pass_tokens=1_000)
    old, young = _sequence(batch, 64, target=70, seed=1), _sequence(batch, 64, target=3, seed=2)
    _step(batch)
    second = _step(batch)  # both need a second block, one is left
    assert [s for s, _ in second.words] == [old]
    assert (batch.preemptions, young.computed, young.generated, batch.prefill_tokens) == (1, 0, 1, 65)
    while not old.ended:
        _step(batch)
    while not young.ended:
        _step(batch)
    assert (old.generated, young.generated) == (70, 3)
    assert batch.store.free == 3


def test_a_request_waits_until_its_whole_prompt_has_room() -> None:
    """It is admitted in the first pass after blocks are free, in the order of arrival."""
    batch = _batch(blocks=4, pass_tokens=1_000)
    holder = _sequence(batch, 128, target=2, seed=1)
    _step(batch)
    big, small = _sequence(batch, 200, seed=2), _sequence(batch, 10, seed=3)
    assert _step(batch).new_tokens == 0
    assert holder.ended
    assert batch.waiting == 2
    assert [s for s, _ in _step(batch).words] == [big]
    assert batch.waiting == 1  # `small` waits for a block: `big` has all four
    assert small.block_count == 0


def test_no_more_streams_run_than_the_profile_allows() -> None:
    """The ninth waits for one of eight to end."""
    batch = _batch(blocks=20)
    nine = [_sequence(batch, 5, target=2, seed=seed) for seed in range(1, 10)]
    assert len(_step(batch).words) == 8
    assert batch.waiting == 1
    _step(batch)
    assert [s for s, _ in _step(batch).words] == nine[8:]


def test_a_pulled_sequence_runs_as_a_decoding_stream_from_its_first_word() -> None:
    """It holds its blocks while it is pulled, beside passes of others, and costs one token of the budget afterwards."""
    batch = _batch()
    sequence = _sequence(batch, 130, remote=True)
    assert batch.start_pulls() == [sequence]
    assert (sequence.block_count, sequence.registered, batch.store.used, batch.step()) == (3, 0, 3, None)
    rows = bytes(range(96))
    batch.pulled(sequence, rows)
    assert [batch.store.row(block) for block in sequence.blocks()] == [rows[0:32], rows[32:64], rows[64:96]]
    assert batch.store.cached == 2
    done = _step(batch)
    assert (done.new_tokens, done.streams, done.context_tokens) == (0, 1, 130)
    assert done.seconds == pytest.approx(100.13)


def test_blocks_in_the_own_cache_are_not_pulled() -> None:
    """Only the missing ones are."""
    batch = _batch(pass_tokens=1_000)
    _sequence(batch, 130, target=1)
    _step(batch)
    sequence = _sequence(batch, 200, remote=True)
    batch.start_pulls()
    assert (sequence.hit_tokens, sequence.registered, sequence.block_count) == (128, 2, 4)


def test_pulls_do_not_overtake_an_older_request_that_waits_for_blocks() -> None:
    """Else a stream of pulls could starve it."""
    batch = _batch(blocks=4, pass_tokens=1_000)
    _sequence(batch, 128, target=3, seed=1)
    _step(batch)
    _sequence(batch, 200, seed=2)
    _step(batch)  # finds no room for it
    _sequence(batch, 20, seed=3, remote=True)
    assert batch.start_pulls() == []
    _step(batch)
    _step(batch)  # room at last: the older one runs, the pull's turn comes when that ends
    assert batch.waiting == 1
    assert len(batch.running) == 1


def test_ending_a_sequence_mid_prefill_frees_its_blocks() -> None:
    """Computed full blocks stay cached, nothing stays in use."""
    batch = _batch()
    sequence = _sequence(batch, 250)
    _step(batch)
    batch.finish(sequence)
    assert (batch.store.used, batch.store.cached, batch.prefill_tokens) == (0, 1, 0)
    assert batch.step() is None


def test_a_pull_does_not_take_the_blocks_of_one_just_preempted() -> None:
    """It is older, and comes first when there is room again."""
    batch = _batch(blocks=3, pass_tokens=1_000)
    old = _sequence(batch, 64, target=70, seed=1)
    young = _sequence(batch, 64, target=3, seed=2)
    _step(batch)
    _step(batch)
    assert (batch.preemptions, old.block_count, batch.store.free) == (1, 2, 1)
    pull = _sequence(batch, 10, seed=3, remote=True)
    assert batch.start_pulls() == []
    while not young.ended:
        _step(batch)
    assert batch.start_pulls() == [pull]


def test_a_word_behind_eight_thousand_tokens_costs_microseconds() -> None:
    """CPU time a word of 8 streams, best of 5 passes; about 6 µs measured, the limit is for slow machines and catches walks over tokens."""
    batch = _batch(blocks=1_200, pass_tokens=100_000)
    for seed in range(8):
        _sequence(batch, 8_000, target=100, seed=seed)
    _step(batch)
    spent = []
    for _ in range(5):
        began = time.process_time()
        words = len(_step(batch).words)
        spent.append((time.process_time() - began) / words)
        assert words == 8
    assert min(spent) < 60e-6, spent
