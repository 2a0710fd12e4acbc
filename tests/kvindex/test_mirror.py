"""The mirror against a dict: the same answers after any sequence of changes, compiled and as plain Python."""

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from penstock_core.kv_events import KvBatch, KvState
from penstock_kvindex import chunk_table
from penstock_kvindex.mirror import BOOKING_GRAIN_S, Hits, Mirror


def plain_kernels() -> ModuleType:
    """A second copy of the kernels, loaded as if numba were not installed."""
    spec = importlib.util.spec_from_file_location("plain_chunk_table", chunk_table.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    held = sys.modules.get("numba")
    sys.modules["numba"] = None  # type: ignore[assignment]
    try:
        spec.loader.exec_module(module)
    finally:
        if held is None:
            del sys.modules["numba"]
        else:
            sys.modules["numba"] = held
    assert not module.COMPILED
    return module


PLAIN = plain_kernels()


@pytest.fixture(params=["compiled", "plain"])
def kernels(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Both ways to run the same source."""
    if request.param == "compiled" and not chunk_table.COMPILED:
        pytest.skip("numba is not installed")
    yield chunk_table if request.param == "compiled" else PLAIN


def keys_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint64)


def as_dict(hits: Hits) -> dict[int, int]:
    found = dict(zip(hits.slots.tolist(), hits.chunks.tolist(), strict=True))
    assert len(found) == len(hits.slots), "a slot is reported once"
    return found


def added(*numbers: int) -> KvBatch:
    return KvBatch(1, 1, added=keys_of(*numbers))


def test_each_slot_is_credited_with_its_leading_chunks_only(kernels: ModuleType) -> None:
    """A slot that lacks a chunk in the middle gets nothing for those behind it; one that lacks the first is not there."""
    mirror = Mirror(kernels=kernels)
    mirror.apply(3, added(1, 2, 3, 4))
    mirror.apply(9, added(1, 2, 4))
    mirror.apply(5, added(2, 3, 4))
    assert as_dict(mirror.longest_prefix(keys_of(1, 2, 3, 4, 5))) == {3: 4, 9: 2}
    assert as_dict(mirror.longest_prefix(keys_of(7, 1))) == {}
    assert as_dict(mirror.longest_prefix(keys_of())) == {}


def test_a_dropped_slot_is_gone_at_once_and_its_chunks_after_a_sweep(kernels: ModuleType) -> None:
    """Dropping takes no time; the table is cleaned later; the slot starts empty when it comes back."""
    mirror = Mirror(kernels=kernels)
    mirror.apply(0, added(*range(1, 101)))
    mirror.apply(1, added(*range(1, 11)))
    mirror.drop(0)
    assert as_dict(mirror.longest_prefix(keys_of(*range(1, 101)))) == {1: 10}
    mirror.apply(0, added(1))
    while not mirror.sweep(50):
        pass
    assert mirror.chunks == 10
    assert as_dict(mirror.longest_prefix(keys_of(1, 2))) == {1: 2, 0: 1}


def test_a_slot_dropped_while_a_sweep_is_under_way_waits_for_the_next_one(kernels: ModuleType) -> None:
    """Nobody who comes afterwards is credited with what the sweep had already passed."""
    mirror = Mirror(kernels=kernels)
    for slot in (0, 1):
        mirror.apply(slot, added(*range(1, 101)))
    mirror.drop(0)
    assert not mirror.sweep(50)
    mirror.drop(1)
    assert not mirror.sweep(50)
    for slot in (2, 3):
        mirror.apply(slot, added(500))
    assert as_dict(mirror.longest_prefix(keys_of(1))) == {}
    while not mirror.sweep(50):
        pass
    assert mirror.chunks == 1


def test_a_removed_chunk_is_not_found_where_it_lay(kernels: ModuleType) -> None:
    """The guess that the next chunk lies behind this one does not see what was there before."""
    mirror = Mirror(kernels=kernels)
    mirror.apply(0, added(1 << 40, 2 << 40))
    mirror.apply(0, KvBatch(1, 2, removed=keys_of(2 << 40)))
    assert as_dict(mirror.longest_prefix(keys_of(1 << 40, 2 << 40))) == {0: 1}
    mirror.apply(0, added(1 << 40, 2 << 40))
    assert as_dict(mirror.longest_prefix(keys_of(2 << 40))) == {0: 1}
    assert mirror.chunks == 2


def test_a_booking_counts_until_it_lapses_and_an_event_makes_it_certain(kernels: ModuleType) -> None:
    """Booked chunks are found at once; they lapse unless the worker's own event has come, and a removal ends both."""
    mirror = Mirror(kernels=kernels)
    mirror.book(2, keys_of(1, 2, 3), until_s=10.0)
    assert as_dict(mirror.longest_prefix(keys_of(1, 2, 3))) == {2: 3}
    mirror.apply(2, added(1, 2))
    mirror.book(2, keys_of(2), until_s=10.0)
    mirror.expire(9.9)
    assert as_dict(mirror.longest_prefix(keys_of(1, 2, 3))) == {2: 3}
    mirror.expire(10.0 + BOOKING_GRAIN_S)
    assert as_dict(mirror.longest_prefix(keys_of(1, 2, 3))) == {2: 2}
    mirror.book(4, keys_of(1), until_s=20.0)
    mirror.apply(4, KvBatch(1, 1, removed=keys_of(1)))
    assert as_dict(mirror.longest_prefix(keys_of(1))) == {2: 1}


def test_an_earlier_booking_that_lapses_leaves_a_later_one_of_the_same_chunk(kernels: ModuleType) -> None:
    """Booking the same chunk again prolongs it."""
    mirror = Mirror(kernels=kernels)
    mirror.book(2, keys_of(1), until_s=10.0)
    mirror.book(2, keys_of(1), until_s=20.0)
    mirror.expire(15.0)
    assert as_dict(mirror.longest_prefix(keys_of(1))) == {2: 1}
    mirror.expire(20.0 + BOOKING_GRAIN_S)
    assert as_dict(mirror.longest_prefix(keys_of(1))) == {}


def test_put_takes_what_a_warm_start_reads(kernels: ModuleType) -> None:
    """Chunk i belongs to its own stretch of slots, whatever the order in which slots became known."""
    mirror = Mirror(kernels=kernels)
    mirror.apply(7, added(50))
    mirror.put(keys_of(1, 2, 3), np.array([0, 2, 3, 5], np.int64), np.array([5, 7, 5, 5, 9], np.uint16))
    assert as_dict(mirror.longest_prefix(keys_of(1, 2, 3))) == {5: 3, 7: 1}
    assert as_dict(mirror.longest_prefix(keys_of(3))) == {5: 1, 9: 1}
    assert as_dict(mirror.longest_prefix(keys_of(50))) == {7: 1}
    mirror.put(keys_of(60, 61), np.array([0, 2, 3], np.int64), np.array([5, 7, 5], np.uint16), {5: 1, 9: 2})
    assert as_dict(mirror.longest_prefix(keys_of(60, 61))) == {1: 2}


def test_memory_a_chunk_stays_within_its_bound_while_the_table_grows() -> None:
    """Two holders a chunk of 64 slots: at most 40 bytes of arrays a chunk, at every size from 200,000 to 400,000 chunks."""
    if not chunk_table.COMPILED:
        pytest.skip("numba is not installed")
    random = np.random.default_rng(7)
    keys = random.integers(0, 2**64, 400_000, dtype=np.uint64)
    mirror = Mirror()
    for start in range(0, len(keys), 1_000):
        for slot in random.choice(64, 2, replace=False).tolist():
            mirror.apply(slot, KvBatch(1, 1, added=keys[start : start + 1_000]))
        if mirror.chunks >= 200_000:
            assert mirror.bytes_used <= 40 * mirror.chunks
    assert mirror.chunks == len(keys)


def test_sets_no_chunk_has_any_more_are_forgotten(kernels: ModuleType) -> None:
    """Chunks that pass through very many holder sets leave only the last ones behind."""
    mirror = Mirror(kernels=kernels)
    random = np.random.default_rng(3)
    for _ in range(300):
        for slot in random.permutation(12).tolist():
            chunks = keys_of(*random.integers(1, 9, 3).tolist())
            mirror.apply(slot, KvBatch(1, 1, added=chunks) if random.random() < 0.6 else KvBatch(1, 1, removed=chunks))
    assert mirror.bytes_used < 400_000


KEYS = st.lists(st.integers(1, 24), max_size=12, unique=True)
SLOTS = st.integers(0, 20)


class MirrorAgainstDict(RuleBasedStateMachine):
    """Random changes to a mirror and to plain dicts; `collide` makes all keys share one home in the table."""

    kernels: ModuleType = PLAIN
    collide = False

    def __init__(self) -> None:
        super().__init__()
        self.mirror = Mirror(kernels=self.kernels)
        self.held: dict[int, set[int]] = {}
        self.booked: dict[tuple[int, int], float] = {}
        self.now_s = 0.0

    def keys(self, numbers: list[int]) -> np.ndarray:
        return keys_of(*[number << 40 if self.collide else number * 0x9E3779B97F4A7C15 % 2**64 for number in numbers])

    def forget(self, slot: int, numbers: list[int] | None = None) -> None:
        for at in [at for at in self.booked if at[0] == slot and (numbers is None or at[1] in numbers)]:
            del self.booked[at]

    @rule(slot=SLOTS, added=KEYS, removed=KEYS, cleared=st.booleans())
    def apply(self, slot: int, added: list[int], removed: list[int], cleared: bool) -> None:
        self.mirror.apply(slot, KvBatch(1, 1, self.keys(added), self.keys(removed), cleared))
        if cleared:
            self.forget(slot)
        self.forget(slot, removed)
        self.held[slot] = (set() if cleared else self.held.get(slot, set()) - set(removed)) | set(added)
        self.forget(slot, added)

    @rule(slot=SLOTS, numbers=KEYS)
    def load(self, slot: int, numbers: list[int]) -> None:
        self.mirror.load(slot, KvState(1, 1, self.keys(numbers)))
        self.forget(slot)
        self.held[slot] = set(numbers)

    @rule(slot=SLOTS)
    def drop(self, slot: int) -> None:
        self.mirror.drop(slot)
        self.forget(slot)
        self.held.pop(slot, None)

    @rule(slot=SLOTS, numbers=KEYS, steps=st.integers(1, 4))
    def book(self, slot: int, numbers: list[int], steps: int) -> None:
        until_s = self.now_s + steps * BOOKING_GRAIN_S
        self.mirror.book(slot, self.keys(numbers), until_s)
        self.booked |= {(slot, number): until_s for number in numbers if number not in self.held.get(slot, set())}

    @rule(steps=st.integers(0, 3))
    def time_passes(self, steps: int) -> None:
        self.now_s += steps * BOOKING_GRAIN_S
        self.mirror.expire(self.now_s)
        self.booked = {at: until_s for at, until_s in self.booked.items() if until_s > self.now_s}

    @rule(budget=st.sampled_from([7, 300, 5_000]))
    def sweep(self, budget: int) -> None:
        if self.mirror.sweep(budget):
            assert self.mirror.chunks == len(set().union(*self.held.values(), {number for _, number in self.booked}))

    @rule(numbers=st.permutations(range(1, 25)), length=st.integers(1, 24))
    def ask(self, numbers: list[int], length: int) -> None:
        self.compare(numbers[:length])

    def compare(self, numbers: list[int]) -> None:
        expected = {}
        for slot in range(21):
            has = self.held.get(slot, set()) | {number for at, number in self.booked if at == slot}
            depth = next((i for i, number in enumerate(numbers) if number not in has), len(numbers))
            if depth:
                expected[slot] = depth
        assert as_dict(self.mirror.longest_prefix(self.keys(numbers))) == expected

    @invariant()
    def agrees_on_every_key(self) -> None:
        for number in range(1, 25, 5):
            self.compare([number])

    def teardown(self) -> None:
        for slot in range(21):
            assert self.mirror.held_by(slot).tolist() == sorted(self.keys(sorted(self.held.get(slot, set()))).tolist())


@pytest.mark.parametrize("collide", [False, True])
def test_any_sequence_of_changes_gives_what_a_dict_gives(kernels: ModuleType, collide: bool) -> None:
    """Adding, removing, clearing, loading, dropping, booking, lapsing and sweeping in any order, with and without collisions."""

    class Machine(MirrorAgainstDict):
        pass

    Machine.kernels = kernels
    Machine.collide = collide
    run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))
