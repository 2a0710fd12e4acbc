"""What the baselines that give every endpoint a price have in common: hits, the least price, and what `explain` shows.

Shapes: one entry a row of the cohort that is looked at. It knows no formula.
"""

import numpy as np
from numpy.typing import NDArray
from penstock_core.placement import Candidate

from penstock_router import columns as col
from penstock_router import kernel
from penstock_router.beliefs import Beliefs
from penstock_router.cohorts import Cohort, Rows
from penstock_router.policies import Choice, Query

Prices = NDArray[np.float64]
NOTHING = -1.0
"""`imbalance` of `kernel.least_running` with which prefixes do not count."""


def hit_tokens(query: Query, rows: Rows, beliefs: Beliefs) -> Prices:
    """Tokens of the prompt that each row holds; they stay in HIT_TOKENS. At least one token is left to compute."""
    kernel.least_running(beliefs.rows, rows, beliefs.row_of_slot, query.slots, query.chunks, query.numbers, query.seed, NOTHING)
    held: Prices = beliefs.rows[rows, col.HIT_TOKENS]
    return held


def least(price: Prices, rows: Rows, seed: int) -> int:
    """Index of the least price, exact ties at random."""
    ties = np.flatnonzero(price == price.min())
    return int(max(ties, key=lambda at: kernel.mix(seed, int(rows[at])))) if len(ties) > 1 else int(ties[0])


def choice(query: Query, cohort: Cohort, beliefs: Beliefs, price: Prices, terms: dict[str, Prices], *, seconds: bool) -> Choice:
    """The starter of the least price, after `hit_tokens`. `seconds`: the price is a predicted TTFT."""
    rows = cohort.starters
    at = least(price, rows, query.seed)
    row = int(rows[at])
    shown: tuple[Candidate, ...] = ()
    if query.explain:
        shown = tuple(_candidate(beliefs, cohort, i, price, terms, seconds) for i in range(len(rows)))
    hit = int(beliefs.row_cells[row * col.ROW + col.HIT_TOKENS])
    return Choice(row, row in cohort.divided, hit, float(price[at]) if seconds else None, None, shown)


def _candidate(beliefs: Beliefs, cohort: Cohort, i: int, price: Prices, terms: dict[str, Prices], seconds: bool) -> Candidate:
    r = int(cohort.starters[i])
    endpoint = beliefs.endpoints[r]
    if endpoint is None:
        raise LookupError(f"row {r} has no endpoint")
    away, hit, cost = r in cohort.divided, int(beliefs.rows[r, col.HIT_TOKENS]), float(price[i])
    parts = {name: float(values[i]) for name, values in terms.items()}
    return Candidate("" if away else endpoint.id, endpoint.id if away else None, hit, cost if seconds else 0.0, 0.0, terms=parts, cost=cost)
