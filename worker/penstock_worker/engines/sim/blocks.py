"""KV blocks: their content, who uses them, which can be found again by hash, and which is given up first.

The batch and the pinned prefills hold references; a full block without references stays cached until its room is needed.
Eviction takes the least recently used first and, of one sequence, its tail before its head, so whatever is cached is
cached from its first block on. No clock, no I/O; every change is one synchronous call.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from penstock_worker.engine import AllBlocksCleared, BlockEvent, BlockRemoved, BlockStored
from penstock_worker.engines.sim.payload import ROW_BYTES


class BlockStore:
    """A fixed number of blocks.

    Every block is in exactly one place: referenced (`refs` > 0), cached without references (`_idle`), or blank (`_blank`).
    A hash names at most one block.
    """

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.rows: NDArray[np.uint8] = np.zeros((blocks, ROW_BYTES), dtype=np.uint8)
        self._bytes = memoryview(self.rows.data).cast("B")
        self.refs = [0] * blocks
        self._hash_of: list[int | None] = [None] * blocks
        self._by_hash: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # next to be evicted first
        self._blank = list(range(blocks - 1, -1, -1))
        self._events: list[BlockEvent] = []
        self._removed: list[int] = []

    @property
    def free(self) -> int:
        """Blocks that `allocate` can give, evicting if need be."""
        return len(self._blank) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that somebody references."""
        return self.blocks - self.free

    @property
    def cached(self) -> int:
        """Blocks that can be found by hash, in use or not."""
        return len(self._by_hash)

    def row(self, block: int) -> bytes:
        return bytes(self._bytes[block * ROW_BYTES : (block + 1) * ROW_BYTES])

    def write(self, block: int, row: bytes) -> None:
        self._bytes[block * ROW_BYTES : (block + 1) * ROW_BYTES] = row

    def match(self, hashes: Sequence[int]) -> list[int]:
        """Blocks of the longest cached prefix of `hashes`; takes no reference."""
        found = []
        for name in hashes:
            block = self._by_hash.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def idle_among(self, blocks: Sequence[int]) -> int:
        """How many of `blocks` nobody references: taking them uses up free blocks."""
        return sum(not self.refs[block] for block in blocks)

    def acquire(self, blocks: Sequence[int]) -> None:
        """Take one reference to each."""
        for block in blocks:
            if not self.refs[block]:
                del self._idle[block]
            self.refs[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks of unknown content with one reference each. Precondition: count <= free."""
        taken = []
        for _ in range(count):
            block = self._blank.pop() if self._blank else self._evict()
            self.refs[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each; `blocks` stand in the order of their sequence, head first."""
        for block in reversed(blocks):
            self.refs[block] -= 1
            if self.refs[block]:
                continue
            if self._hash_of[block] is None:
                self._blank.append(block)
            else:
                self._idle[block] = None

    def register(self, block: int, name: int) -> tuple[int, bool]:
        """Let `block`, full and referenced once by the caller, be found by its hash.

        Returns the block that the caller shall use from now on, and whether the hash is new: where another block holds the
        hash already, the caller's reference moves to that one and its own block is blank again.
        """
        known = self._by_hash.setdefault(name, block)
        if known == block:
            self._hash_of[block] = name
            return block, True
        self.acquire((known,))
        self.refs[block] = 0
        self._blank.append(block)
        return known, False

    def stored(self, event: BlockStored) -> None:
        """Note that blocks became reusable."""
        self._flush_removed()
        self._events.append(event)

    def clear(self) -> None:
        """Empty the cache. Precondition: nobody references a block."""
        self._flush_removed()
        self._blank.extend(self._idle)
        self._idle.clear()
        self._by_hash.clear()
        self._hash_of = [None] * self.blocks
        self._events.append(AllBlocksCleared())

    def take_events(self) -> list[BlockEvent]:
        """What was stored and removed since the last call, in order."""
        self._flush_removed()
        events, self._events = self._events, []
        return events

    def _flush_removed(self) -> None:
        if self._removed:
            self._events.append(BlockRemoved(tuple(self._removed)))
            self._removed.clear()

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        name = self._hash_of[block]
        if name is None:
            raise AssertionError("a block without a name is idle")
        del self._by_hash[name]
        self._hash_of[block] = None
        self._removed.append(name)
        return block
