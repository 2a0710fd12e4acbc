"""One sequence of tokens in the engine: a prompt and one answer to it, its blocks, and how far its KV is computed.

The batch creates passes over sequences, `forward` computes them; both change a Sequence only in synchronous code. What
the sequence is for (a client's stream, a prefill to hand over) is its owner's business.
"""

from array import array
from typing import Any

import numpy as np

from penstock_worker.engines.sim.payload import SPACED_WORD_IDS, WORD_IDS, block_hash

if array("I").itemsize != 4:
    raise ImportError("array('I') is not 4 bytes wide on this machine; token ids need 4")


class Sequence:
    """Mutable state of one sequence; counts are tokens unless named otherwise."""

    __slots__ = (
        "adapter",
        "block_count",
        "booked",
        "choice",
        "computed",
        "ended",
        "generated",
        "hashes",
        "hit_tokens",
        "order",
        "owner",
        "prefilled",
        "prompt_tokens",
        "registered",
        "remote",
        "root",
        "root_hash",
        "salt",
        "spaced_first",
        "table",
        "target",
        "tokens",
    )

    def __init__(
        self,
        prompt_ids: bytes,
        *,
        target: int,
        root: bytes,
        root_hash: int,
        choice: int = 0,
        salt: str = "",
        adapter: str = "",
        spaced_first: bool = False,
        remote: bool = False,
        owner: Any = None,
    ) -> None:
        self.tokens = array("I", prompt_ids)
        self.prompt_tokens = len(self.tokens)
        self.target = target
        """Words to generate."""
        self.root = root
        self.root_hash = root_hash
        self.choice = choice
        self.salt = salt
        self.adapter = adapter
        self.spaced_first = spaced_first
        """The first word has a space before it: it goes on with the prompt's text."""
        self.remote = remote
        """Its prompt's KV is to be pulled; after that, or after a preemption, it is a sequence like any other."""
        self.owner = owner
        self.order = 0
        self.generated = 0
        self.computed = 0
        """Leading tokens whose KV the blocks hold."""
        self.registered = 0
        """Leading full blocks that were offered to the prefix cache."""
        self.prefilled = False
        """All its tokens but the newest are computed: it takes one token of a pass, as a decoding stream."""
        self.booked = 0
        """Prompt tokens counted in the batch's load."""
        self.hit_tokens: int | None = None
        """Prompt tokens found in the prefix cache when it first got its blocks; None before."""
        self.hashes: list[int] = []
        self.table = np.zeros(8, dtype=np.intp)
        """Its blocks in order; the first `block_count` entries count."""
        self.block_count = 0
        self.ended = False

    @property
    def done(self) -> bool:
        return self.generated >= self.target

    def blocks(self) -> list[int]:
        taken: list[int] = self.table[: self.block_count].tolist()
        return taken

    def add_blocks(self, blocks: list[int]) -> None:
        needed = self.block_count + len(blocks)
        if needed > len(self.table):
            self.table = np.concatenate([self.table, np.zeros(max(needed, len(self.table)), dtype=np.intp)])
        self.table[self.block_count : needed] = blocks
        self.block_count = needed

    def forget_blocks(self) -> None:
        """Back to nothing computed (its blocks were released or given away)."""
        self.block_count = self.computed = self.registered = 0
        self.prefilled = False

    def full_block_hashes(self, count: int, block_tokens: int) -> list[int]:
        """Hashes of its first `count` blocks, all of them full of known tokens."""
        known = self.hashes
        while len(known) < count:
            start = len(known) * block_tokens
            parent = known[-1] if known else self.root_hash
            known.append(block_hash(parent, self.tokens[start : start + block_tokens].tobytes()))
        return known[:count] if len(known) > count else known

    def append(self, word: int) -> None:
        """Take the next word of its answer."""
        spaced = self.generated or self.spaced_first
        self.tokens.append(SPACED_WORD_IDS[word] if spaced else WORD_IDS[word])
        self.generated += 1
