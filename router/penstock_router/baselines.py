"""Published policies of other systems, under the same Protocol: to compare with, and for users who want them.

`block-cost` is Dynamo's KV router: a weighted sum of prompt blocks to compute and blocks in use. The scheduler asks them
like any other policy. They read the same beliefs as `target-misses`; nothing else in the router knows of them.
"""

import numpy as np
from numpy.typing import NDArray
from penstock_core.placement import Candidate

from penstock_router import columns as col
from penstock_router import kernel
from penstock_router.beliefs import Beliefs
from penstock_router.cohorts import Cohort, Rows
from penstock_router.policies import Choice, Query

BLOCK_TOKENS = 64.0
MOST_SCALE = 1e6


class BlockCost:
    """Dynamo: scale · (blocks of prompt queued there + own prompt − hit) + blocks of all prompts in work there.

    Prompt blocks count as queued until their first token, and as in work until the request ends; outputs are not counted.
    After a prefill elsewhere the decode endpoint with the fewest blocks in work is taken.
    """

    reason = "block-cost"

    def __init__(self, scale: float = 1.0) -> None:
        if not 0.0 <= scale <= MOST_SCALE:
            raise ValueError(f"block-cost's scale is {scale!r}; allowed: 0..{MOST_SCALE:g}")
        self._scale = scale
        self.name = f"block-cost:{scale:g}"

    def start(self, query: Query, cohort: Cohort, beliefs: Beliefs) -> Choice | None:
        rows = cohort.starters
        if not len(rows):
            return None
        hits = _hit_tokens(query, rows, beliefs)
        n = query.cells[col.PROMPT]
        outputs = np.array([0.0 if r in cohort.divided else query.cells[col.KV_NEED] - n for r in rows.tolist()])
        prefill = self._scale * np.maximum(0.0, beliefs.rows[rows, col.BOOKED] + n - hits) / BLOCK_TOKENS
        blocks = _blocks_in_work(rows, beliefs, outputs)
        cost = prefill + blocks
        at = _least(cost, rows, query.seed)
        row = int(rows[at])
        shown: tuple[Candidate, ...] = ()
        if query.explain:
            shown = tuple(
                _candidate(beliefs, int(r), int(r) in cohort.divided, {"prefill": float(p), "blocks": float(b)}, float(p + b))
                for r, p, b in zip(rows, prefill, blocks, strict=True)
            )
        return Choice(row, row in cohort.divided, int(hits[at]), None, None, shown)

    def decode(self, query: Query, rows: Rows, beliefs: Beliefs) -> int | None:
        if not len(rows):
            return None
        output = query.cells[col.KV_NEED] - query.cells[col.PROMPT]
        return int(rows[_least(_blocks_in_work(rows, beliefs, output), rows, query.seed)])


def _hit_tokens(query: Query, rows: Rows, beliefs: Beliefs) -> NDArray[np.float64]:
    """Tokens of the prompt that each row holds; the kernel leaves them in HIT_TOKENS."""
    kernel.least_running(beliefs.rows, rows, beliefs.row_of_slot, query.slots, query.chunks, query.numbers, query.seed, -1.0)
    held: NDArray[np.float64] = beliefs.rows[rows, col.HIT_TOKENS]
    return held


def _blocks_in_work(rows: Rows, beliefs: Beliefs, expected_output: "NDArray[np.float64] | float") -> NDArray[np.float64]:
    """Blocks of the prompts booked at each row: what is booked less the outputs expected with it."""
    booked = beliefs.rows[rows, col.KV_BOOKED] - beliefs.rows[rows, col.RUNNING] * expected_output
    blocks: NDArray[np.float64] = np.maximum(0.0, booked) / BLOCK_TOKENS
    return blocks


def _least(cost: NDArray[np.float64], rows: Rows, seed: int) -> int:
    """Index of the least cost, exact ties at random."""
    ties = np.flatnonzero(cost == cost.min())
    return int(max(ties, key=lambda at: kernel.mix(seed, int(rows[at])))) if len(ties) > 1 else int(ties[0])


def _candidate(beliefs: Beliefs, r: int, divided: bool, terms: dict[str, float], cost: float) -> Candidate:
    endpoint = beliefs.endpoints[r]
    if endpoint is None:
        raise LookupError(f"row {r} has no endpoint")
    hit = int(beliefs.rows[r, col.HIT_TOKENS])
    return Candidate("" if divided else endpoint.id, endpoint.id if divided else None, hit, 0.0, 0.0, terms=terms, cost=cost)
