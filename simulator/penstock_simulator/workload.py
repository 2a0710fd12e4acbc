"""What is asked of the fleet: when requests arrive, how long prompts and answers are, and which blocks they share.

Readers (`traces`) and generators (`generate`) make it, the cluster replays it. Content is block ids of 64 tokens: equal
ids mean equal tokens from the start of the prompt on, so that prefix identity is exact. It knows no engine and no policy.
"""

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 64
"""Tokens in one KV block of the simulated engines, and in one chunk of the simulated index."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """R requests. A request that `follows` another arrives `gap_s` after that one's last token."""

    name: str
    arrival_s: NDArray[np.float64]
    """Seconds from the start, shape (R,), not decreasing among requests that follow nobody; ignored for the others."""
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    """At least 1."""
    chain: NDArray[np.int32]
    """Block ids of prompt and output of all requests; ids are 0 .. distinct_blocks − 1."""
    offsets: NDArray[np.int64]
    """Request i has chain[offsets[i]:offsets[i + 1]], shape (R + 1,)."""
    distinct_blocks: int
    follows: NDArray[np.int64]
    """Request that must have ended first, −1: none; shape (R,)."""
    gap_s: NDArray[np.float64]

    @property
    def requests(self) -> int:
        return len(self.prompt_tokens)

    def asked(self, request: int) -> "Asked":
        """Lengths and arrival of one request, as `assemble` takes them; without what it shares or follows."""
        return Asked(float(self.arrival_s[request]), int(self.prompt_tokens[request]), int(self.output_tokens[request]), ())

    def at_speed(self, speedup: float) -> "Workload":
        """The same requests in 1 ÷ speedup of the time. Raises ValueError for a speed-up that is not above 0."""
        if not 0.0 < speedup < 1e6:
            raise ValueError(f"speedup is {speedup!r}; allowed: more than 0 and less than 1000000")
        return msgspec.structs.replace(self, arrival_s=self.arrival_s / speedup, gap_s=self.gap_s / speedup)

    def spread(self) -> "Workload":
        """Arrivals that share a stored instant spread evenly up to the next instant (at most one median quantum)."""
        instants, index, counts = np.unique(self.arrival_s, return_inverse=True, return_counts=True)
        if len(instants) < 2:
            return self
        steps = np.diff(instants)
        quantum = np.append(np.minimum(steps, np.median(steps)), np.median(steps))
        order = np.argsort(index, kind="stable")
        rank = np.empty(len(index))
        rank[order] = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
        return msgspec.structs.replace(self, arrival_s=instants[index] + quantum[index] * rank / counts[index])

    def first(self, requests: int) -> "Workload":
        """The first so many requests."""
        end = min(requests, self.requests)
        return msgspec.structs.replace(
            self,
            arrival_s=self.arrival_s[:end],
            prompt_tokens=self.prompt_tokens[:end],
            output_tokens=self.output_tokens[:end],
            chain=self.chain[: self.offsets[end]],
            offsets=self.offsets[: end + 1],
            follows=self.follows[:end],
            gap_s=self.gap_s[:end],
        )


class Asked(msgspec.Struct, frozen=True):
    """One request as a reader or generator tells it to `assemble`."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[int]
    """Ids of the leading full blocks that may be shared, already chained; further blocks are the request's own."""
    follows: int = -1
    gap_s: float = 0.0


def assemble(name: str, asked: Iterable[Asked], shared_blocks: int) -> Workload:
    """A Workload of `asked`, whose block ids are 0 .. shared_blocks − 1; own blocks get the ids after them.

    Raises ValueError for lengths below 1 and for a request that follows itself or a later one.
    """
    rows = list(asked)
    offsets = np.zeros(len(rows) + 1, np.int64)
    pieces: list[NDArray[np.int32]] = []
    fresh = shared_blocks
    for i, one in enumerate(rows):
        if one.prompt_tokens < 1 or one.output_tokens < 1:
            raise ValueError(
                f"request {i} of {name} has {one.prompt_tokens} prompt and {one.output_tokens} output tokens; allowed: 1 or more"
            )
        if one.follows >= i:
            raise ValueError(f"request {i} of {name} follows request {one.follows}; allowed: an earlier one or -1")
        length = -(-(one.prompt_tokens + one.output_tokens) // BLOCK_TOKENS)
        shared = np.asarray(one.blocks[:length], np.int32)
        own = length - len(shared)
        pieces += (shared, np.arange(fresh, fresh + own, dtype=np.int32))
        fresh += own
        offsets[i + 1] = offsets[i] + length
    return Workload(
        name=name,
        arrival_s=np.array([one.arrival_s for one in rows], np.float64),
        prompt_tokens=np.array([one.prompt_tokens for one in rows], np.int64),
        output_tokens=np.array([one.output_tokens for one in rows], np.int64),
        chain=np.concatenate(pieces) if pieces else np.zeros(0, np.int32),
        offsets=offsets,
        distinct_blocks=fresh,
        follows=np.array([one.follows for one in rows], np.int64),
        gap_s=np.array([one.gap_s for one in rows], np.float64),
    )
