"""Blocks are never lost, never shared wrongly, and evicted least recently used first, tail before head."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from penstock_core.profile import DecodePiece, EngineProfile
from penstock_worker.engine import AllBlocksCleared, BlockRemoved, BlockStored
from penstock_worker.engines.sim import payload
from penstock_worker.engines.sim.batching import Batch
from penstock_worker.engines.sim.blocks import BlockStore
from penstock_worker.engines.sim.sequence import Sequence


def _fill(store: BlockStore, hashes: list[int]) -> list[int]:
    """Allocate and register a chain; the caller holds it."""
    blocks = store.allocate(len(hashes))
    return [store.register(block, name)[0] for block, name in zip(blocks, hashes, strict=True)]


def test_a_released_chain_is_found_again_until_its_room_is_needed() -> None:
    """Its tail goes first, so what is left is always a prefix."""
    store = BlockStore(4, 64)
    chain = _fill(store, [1, 2, 3])
    store.release(chain)
    assert store.free == 4
    assert store.match([1, 2, 3]) == chain
    store.allocate(2)  # one blank block, and one evicted: the tail
    assert store.match([1, 2, 3]) == chain[:2]
    assert store.take_events() == [BlockRemoved((3,))]


def test_the_least_recently_used_chain_goes_first() -> None:
    """Using a chain again saves it at the cost of the other."""
    store = BlockStore(4, 64)
    old, new = _fill(store, [1, 2]), _fill(store, [11, 12])
    store.release(old)
    store.release(new)
    store.acquire(old)
    store.release(old)
    store.allocate(2)
    assert store.match([1, 2]) == old
    assert store.match([11, 12]) == []


def test_a_second_block_with_the_same_content_gives_way_to_the_first() -> None:
    """The caller's reference moves, its own block is blank again."""
    store = BlockStore(3, 64)
    first = _fill(store, [1])
    (block,) = store.allocate(1)
    assert store.register(block, 1) == (first[0], False)
    assert store.free == 2
    store.release(first)
    assert store.refs[first[0]] == 1


def test_clear_forgets_everything_and_says_so() -> None:
    """One event; nothing is found afterwards."""
    store = BlockStore(3, 64)
    store.release(_fill(store, [1, 2]))
    store.clear()
    assert store.take_events() == [AllBlocksCleared()]
    assert store.match([1]) == []
    assert (store.free, store.cached) == (3, 0)


_TIMING = EngineProfile(
    name="t", source="t", kv_tokens=64, kv_bytes_per_token=1, pass_tokens=24, max_streams=5, decode_small=DecodePiece(1.0)
)


class BatchMachine(RuleBasedStateMachine):
    """Requests with shared prefixes come, run, are pulled, pinned and aborted at any moment in a store of 16 blocks of 4 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.store = BlockStore(16, 4)
        self.batch = Batch(self.store, _TIMING)
        self.live: list[Sequence] = []
        self.pulling: list[Sequence] = []
        self.pinned: list[list[int]] = []
        self.held: list[int] = []  # hashes according to the events

    @rule(first=st.integers(1, 2), length=st.integers(1, 40), words=st.integers(1, 20), remote=st.booleans())
    def submit(self, first: int, length: int, words: int, remote: bool) -> None:
        ids = b"".join((first if token < 13 else token * first).to_bytes(4, "little") for token in range(length))
        sequence = Sequence(ids, target=words, root=payload.root_row("g", "", ""), root_hash=7, remote=remote)
        self.batch.submit(sequence)
        self.live.append(sequence)
        self.pulling += self.batch.start_pulls()

    @rule()
    def run_a_pass(self) -> None:
        done = self.batch.step()
        for sequence, _ in done.words if done else ():
            if sequence.done:
                self.batch.finish(sequence)
                self.live.remove(sequence)
        self.pulling += self.batch.start_pulls()

    @precondition(lambda self: self.pulling)
    @rule()
    def a_pull_arrives(self) -> None:
        sequence = self.pulling.pop(0)
        self.batch.pulled(sequence, bytes(32 * (sequence.block_count - sequence.registered)))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), keep=st.booleans())
    def end_early(self, which: int, keep: bool) -> None:
        sequence = self.live.pop(which % len(self.live))
        if sequence in self.pulling:
            self.pulling.remove(sequence)
        if keep:
            self.pinned.append(self.batch.detach(sequence))
        else:
            self.batch.finish(sequence)
            self.batch.finish(sequence)

    @precondition(lambda self: self.pinned)
    @rule()
    def unpin(self) -> None:
        self.store.release(self.pinned.pop(0))

    @invariant()
    def every_reference_is_accounted_for(self) -> None:
        expected = [0] * self.store.blocks
        for blocks in [*(sequence.blocks() for sequence in self.live), *self.pinned]:
            for block in blocks:
                expected[block] += 1
        assert self.store.refs == expected
        assert self.store.used == sum(count > 0 for count in expected)

    @invariant()
    def whatever_is_cached_is_cached_from_its_first_block_on(self) -> None:
        for event in self.store.take_events():
            if isinstance(event, BlockStored):
                assert event.parent is None or event.parent in self.held
                assert len(event.token_ids) == 4 * len(event.hashes)
                assert not set(event.hashes) & set(self.held)
                self.held += event.hashes
            else:
                assert isinstance(event, BlockRemoved)
                for name in event.hashes:
                    self.held.remove(name)
        assert sorted(self.store._by_hash) == sorted(self.held)
        assert all(self.store.match([name]) for name in self.held)

    @invariant()
    def the_load_is_the_sum_of_what_is_left_to_compute(self) -> None:
        waiting = sum(sequence.booked for sequence in self.live)
        assert self.batch.prefill_tokens == waiting >= 0
        assert len(self.batch.all()) == len(self.live)

    def teardown(self) -> None:
        for blocks in self.pinned:
            self.store.release(blocks)
        self.pinned = []
        for sequence in self.pulling:
            self.batch.finish(sequence)
            self.live.remove(sequence)
        for _ in range(2_000):  # everything else comes to its end by itself
            if not self.batch.all():
                break
            done = self.batch.step()
            assert done is not None or self.batch.start_pulls(), "a pass must be possible when nothing else holds blocks"
            for sequence in (
                [*(s for s, _ in done.words if s.done)] if done else [s for s in self.batch.all() if s.remote and s.block_count]
            ):
                self.batch.finish(sequence)
        assert not self.batch.all()
        assert self.store.free == self.store.blocks
        assert self.batch.prefill_tokens == 0


BatchMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_no_block_is_lost_whatever_happens = BatchMachine.TestCase


def test_a_block_cannot_be_written_past_its_row() -> None:
    """A row of another length is an error, not a neighbour's corruption."""
    store = BlockStore(2, 64)
    with pytest.raises(ValueError, match="different"):
        store.write(0, bytes(33))
