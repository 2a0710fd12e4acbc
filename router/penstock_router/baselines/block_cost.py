"""`block-cost`, the KV router of NVIDIA's Dynamo: a weighted sum of prompt blocks to compute and blocks in use.

Source: Dynamo's documentation ("KV Cache Routing", "Cost function"): logit = overlap weight · prefill blocks + decode
blocks, least first, at its default temperature 0. The scheduler asks it like any other policy.
"""

import numpy as np

from penstock_router import columns as col
from penstock_router.baselines.priced import Prices, choice, hit_tokens, least
from penstock_router.beliefs import Beliefs
from penstock_router.cohorts import Cohort, Rows
from penstock_router.policies import Choice, Query
from penstock_router.policy_names import MOST_SCALE, SCALE_RANGE

BLOCK_TOKENS = 64.0


class BlockCost:
    """scale · max(0, U + n − h)/64 + (prompt tokens of all requests in work there)/64, in blocks of 64 tokens.

    Prompt blocks count as queued until their first token, and as in work until the request ends; outputs are not counted.
    After a prefill elsewhere the decode endpoint with the fewest blocks in work is taken.
    """

    reason = "block-cost"

    def __init__(self, scale: float = 1.0) -> None:
        if not 0.0 <= scale <= MOST_SCALE:
            raise ValueError(f"block-cost's scale is {scale!r}; allowed: {SCALE_RANGE}")
        self._scale = scale
        self.name = f"block-cost:{scale:g}"

    def start(self, query: Query, cohort: Cohort, beliefs: Beliefs) -> Choice | None:
        rows = cohort.starters
        if not len(rows):
            return None
        hits = hit_tokens(query, rows, beliefs)
        n = query.cells[col.PROMPT]
        outputs = np.array([0.0 if r in cohort.divided else query.cells[col.KV_NEED] - n for r in rows.tolist()])
        prefill = self._scale * np.maximum(0.0, beliefs.rows[rows, col.BOOKED] + n - hits) / BLOCK_TOKENS
        blocks = _blocks_in_work(rows, beliefs, outputs)
        return choice(query, cohort, beliefs, prefill + blocks, {"prefill": prefill, "blocks": blocks}, seconds=False)

    def decode(self, query: Query, rows: Rows, beliefs: Beliefs) -> int | None:
        if not len(rows):
            return None
        output = query.cells[col.KV_NEED] - query.cells[col.PROMPT]
        return int(rows[least(_blocks_in_work(rows, beliefs, output), rows, query.seed)])


def _blocks_in_work(rows: Rows, beliefs: Beliefs, expected_output: Prices | float) -> Prices:
    """Blocks of the prompts booked at each row: what is booked less the outputs expected with it."""
    booked = beliefs.rows[rows, col.KV_BOOKED] - beliefs.rows[rows, col.RUNNING] * expected_output
    blocks: Prices = np.maximum(0.0, booked) / BLOCK_TOKENS
    return blocks
