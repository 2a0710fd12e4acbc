"""Continuous batching: which sequences compute what in the next pass, and how long the pass lasts.

The engine's shell submits sequences, calls `step` when a pass may begin, sleeps for its seconds and hands the words out.
Pure: no clock, no I/O. One pass has a budget of tokens; every decoding stream uses one, prompts share the rest in chunks, in
the order of arrival. Blocks are found by others from the start of the pass that fills them. Modelled on vLLM's v1
scheduler; the timing is that of policies.md §4.
"""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from penstock_core.profile import EngineProfile

from penstock_worker.engines.sim import forward
from penstock_worker.engines.sim.blocks import BlockStore
from penstock_worker.engines.sim.payload import ROW_BYTES
from penstock_worker.engines.sim.sequence import Sequence


class Pass(NamedTuple):
    """One pass of the engine. Its words are out when it ends."""

    seconds: float
    words: list[tuple[Sequence, int]]
    """Each sequence that gets a word, and the word's index; those for which `done` is now true want `finish` or `detach`."""
    new_tokens: int
    """Prompt tokens computed."""
    streams: int
    """Decoding streams."""
    context_tokens: int
    """Of those streams."""


class Batch:
    """All sequences of one engine, from submission to their end.

    A sequence stands in exactly one of: `waiting` (no blocks), `remote` (waits for blocks to pull into, no blocks), `pulling`,
    `pulled` (both hold blocks), `running` (holds blocks).
    """

    def __init__(self, store: BlockStore, timing: EngineProfile) -> None:
        self.store = store
        self._timing = timing
        self.running: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()
        self._remote: deque[Sequence] = deque()
        self._pulling: list[Sequence] = []
        self._pulled: deque[Sequence] = deque()
        self._orders = 0
        self._short_of_blocks = False  # the head of `_waiting` could not be placed for want of blocks
        self.prefill_tokens = 0
        """Prompt tokens accepted and not yet computed."""
        self.preemptions = 0
        self.queried_tokens = 0
        """Prompt tokens looked up in the prefix cache, and below how many of them were found."""
        self.hit_tokens = 0

    @property
    def waiting(self) -> int:
        """Sequences accepted and not yet running."""
        return len(self._waiting) + len(self._remote) + len(self._pulling) + len(self._pulled)

    def submit(self, sequence: Sequence) -> None:
        """Take a sequence in. Precondition: prompt plus target fit into the store."""
        self._orders += 1
        sequence.order = self._orders
        self._book(sequence, sequence.prompt_tokens)
        (self._remote if sequence.remote else self._waiting).append(sequence)

    def start_pulls(self) -> list[Sequence]:
        """Give blocks to the sequences whose prompt's KV comes from elsewhere; each returned one wants `pulled` or `finish`.

        Its first `registered` blocks were found in the cache; the others are to be filled.
        """
        started = []
        while self._remote:
            sequence = self._remote[0]
            # An older sequence that waits for blocks must not starve behind pulls.
            if self._short_of_blocks and self._waiting and self._waiting[0].order < sequence.order:
                break
            if not self._place(sequence):
                break
            self._pulling.append(self._remote.popleft())
            started.append(sequence)
        return started

    def pulled(self, sequence: Sequence, rows: bytes) -> None:
        """The missing rows of a pulling sequence have come, 32 bytes each in order; it runs from the next pass on."""
        first = sequence.registered
        if len(rows) != (sequence.block_count - first) * ROW_BYTES:
            raise ValueError(f"rows are {len(rows)} bytes long; allowed: {(sequence.block_count - first) * ROW_BYTES}")
        for number in range(first, sequence.block_count):
            at = (number - first) * ROW_BYTES
            self.store.write(int(sequence.table[number]), rows[at : at + ROW_BYTES])
        sequence.computed = sequence.prompt_tokens
        sequence.prefilled, sequence.remote = True, False
        self._book(sequence, 0)
        forward.offer(self.store, sequence)
        self._pulling.remove(sequence)
        self._pulled.append(sequence)

    def step(self) -> Pass | None:
        """Plan and compute the next pass; None when nothing can run before something changes."""
        while self._pulled and len(self.running) < self._timing.max_streams:
            self.running.append(self._pulled.popleft())
        preempted = self._grow()
        streams = [sequence for sequence in self.running if sequence.prefilled]
        context = sum(len(sequence.tokens) for sequence in streams)
        budget = max(0, self._timing.pass_tokens - len(streams))
        words = [(sequence, self._decode(sequence)) for sequence in streams]
        left = self._prefill(self.running, budget, words)
        if not preempted:
            left = self._admit(left, words)
        new = budget - left
        if not streams and not new:
            return None
        return Pass(self._timing.prefill_s(new) + self._timing.decode_s(len(streams), context), words, new, len(streams), context)

    def finish(self, sequence: Sequence) -> None:
        """End a sequence wherever it stands, and release its blocks; safe to repeat."""
        if not sequence.ended:
            self.store.release(self.detach(sequence))

    def detach(self, sequence: Sequence) -> list[int]:
        """End a sequence and hand its blocks, in order, with their references to the caller."""
        queue: list[Sequence] | deque[Sequence]
        for queue in (self.running, self._waiting, self._remote, self._pulling, self._pulled):
            if sequence in queue:
                queue.remove(sequence)
                break
        sequence.ended = True
        self._book(sequence, 0)
        blocks = sequence.blocks()
        sequence.forget_blocks()
        return blocks

    def all(self) -> list[Sequence]:
        """Every sequence that has not ended."""
        return [*self.running, *self._waiting, *self._remote, *self._pulling, *self._pulled]

    def _grow(self) -> bool:
        """Give every decoding stream room for its newest token, oldest first; whether someone was preempted for it."""
        preempted = False
        size = self.store.block_tokens
        for sequence in list(self.running):
            if not sequence.prefilled or len(sequence.tokens) <= sequence.block_count * size:
                continue
            while not self.store.free and sequence.prefilled:
                self._preempt(self.running.pop())
                preempted = True
            if sequence.prefilled:
                sequence.add_blocks(self.store.allocate(1))
        return preempted

    def _preempt(self, sequence: Sequence) -> None:
        """Take its blocks away; it comes first among the waiting and computes again what is no longer cached."""
        self.store.release(sequence.blocks())
        sequence.forget_blocks()
        self._book(sequence, len(sequence.tokens))
        self._waiting.appendleft(sequence)
        self._short_of_blocks = True
        self.preemptions += 1

    def _decode(self, sequence: Sequence) -> int:
        forward.compute(self.store, sequence, len(sequence.tokens))
        return self._sample(sequence)

    def _sample(self, sequence: Sequence) -> int:
        word = forward.next_word(self.store, sequence)
        sequence.append(word)
        return word

    def _prefill(self, sequences: Iterable[Sequence], budget: int, words: list[tuple[Sequence, int]]) -> int:
        """Spend the budget on prompts; what is left of it."""
        for sequence in sequences:
            if not budget:
                break
            if sequence.prefilled:
                continue
            wanted = len(sequence.tokens) - sequence.computed
            chunk = min(wanted, budget)
            forward.compute(self.store, sequence, sequence.computed + chunk)
            self._book(sequence, wanted - chunk)
            budget -= chunk
            if chunk == wanted:
                sequence.prefilled = True
                words.append((sequence, self._sample(sequence)))
        return budget

    def _admit(self, budget: int, words: list[tuple[Sequence, int]]) -> int:
        """Start waiting sequences while budget, streams and blocks last; what is left of the budget."""
        self._short_of_blocks = False
        while self._waiting and budget and len(self.running) < self._timing.max_streams:
            sequence = self._waiting[0]
            if not self._place(sequence):
                self._short_of_blocks = True
                break
            self.running.append(self._waiting.popleft())
            budget = self._prefill((sequence,), budget, words)
        return budget

    def _place(self, sequence: Sequence) -> bool:
        """Give `sequence` the blocks of all its tokens, cached ones first; False where there is no room.

        The block of the last token is never taken from the cache: that token must be computed to know the next.
        """
        size, length = self.store.block_tokens, len(sequence.tokens)
        found = self.store.match(sequence.full_block_hashes((length - 1) // size, size))
        missing = -(-length // size) - len(found)
        if missing + self.store.idle_among(found) > self.store.free:
            return False
        self.store.acquire(found)
        sequence.add_blocks(found + self.store.allocate(missing))
        sequence.computed, sequence.registered = len(found) * size, len(found)
        self._book(sequence, length - sequence.computed)
        if sequence.hit_tokens is None:
            sequence.hit_tokens = sequence.computed
            self.queried_tokens += sequence.prompt_tokens
            self.hit_tokens += sequence.hit_tokens
        return True

    def _book(self, sequence: Sequence, tokens: int) -> None:
        self.prefill_tokens += tokens - sequence.booked
        sequence.booked = tokens
