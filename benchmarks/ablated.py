"""`target-misses` without one of its ingredients: policies that do not ship, for `ablation`.

They ask the shipping kernel for all terms of every candidate's cost and leave out one, or replace it by what one would have
without the ingredient. So what is left is exactly what ships.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from penstock_router import columns as col
from penstock_router import kernel
from penstock_router.beliefs import Beliefs
from penstock_router.cohorts import Cohort, Rows
from penstock_router.kernel.misses import missed_ttft
from penstock_router.policies import Choice, Query, TargetMisses

_DROPPED = {
    "own miss": col.OWN_MISS,
    "others' misses": col.OTHERS_MISS,
    "others' waits": col.OTHERS_WAIT,
    "ITL of the newcomer": col.ITL_MISS,
    "work": col.WORK,
}


@dataclass(frozen=True)
class Without:
    """Makes the policy without `ingredient`; can be sent to another process."""

    ingredient: str

    def __call__(self) -> "Ablated":
        return Ablated(self.ingredient)


class Ablated(TargetMisses):
    """State, for "pass-awareness" alone: when each endpoint would be through with all it was given, one prompt after the other."""

    def __init__(self, ingredient: str) -> None:
        super().__init__()
        if ingredient not in INGREDIENTS:
            raise ValueError(f"ingredient is {ingredient!r}; allowed: {', '.join(INGREDIENTS)}")
        self._ingredient = ingredient
        self._free_s: dict[int, float] = {}

    def start(self, query: Query, cohort: Cohort, beliefs: Beliefs) -> Choice | None:
        if self._ingredient == "hits":
            query.slots, query.chunks = query.slots[:0], query.chunks[:0]
        return super().start(query, cohort, beliefs)

    def _least(self, query: Query, rows: Rows, beliefs: Beliefs, divided: bool) -> Choice:
        kernel.least_cost(
            beliefs.rows, beliefs.streams, query.table, rows, beliefs.row_of_slot, query.slots, query.chunks,
            query.numbers, query.seed, divided, True,
        )  # fmt: skip
        cost = beliefs.rows[rows, col.COST].copy()
        dropped = _DROPPED.get(self._ingredient)
        if dropped is not None:
            cost -= beliefs.rows[rows, dropped]
        elif self._ingredient == "predicted TTFT":
            cost -= beliefs.rows[rows, col.TTFT_S] / query.numbers[col.TARGET_TTFT_S]
        elif self._ingredient == "pass-awareness":
            cost += [self._naive(query, r, beliefs) for r in rows.tolist()]
        least = np.flatnonzero(cost == cost.min())
        row = int(rows[least[query.seed % len(least)]])
        cells = beliefs.rows[row]
        if self._ingredient == "pass-awareness":
            self._free_s[row] = self._through_s(query, row, beliefs)
        return Choice(row, divided, int(cells[col.HIT_TOKENS]), float(cells[col.TTFT_S]), float(cells[col.ITL_S]), ())

    def _through_s(self, query: Query, r: int, beliefs: Beliefs) -> float:
        """When endpoint r is through with the newcomer, prompts being computed one after the other, each in a pass of its own."""
        new = query.numbers[col.PROMPT] - beliefs.rows[r, col.HIT_TOKENS]
        now = float(query.numbers[col.NOW_S])
        return max(now, self._free_s.get(r, 0.0)) + float(kernel.prefill_s(beliefs.rows, r, float(new), 0.0))

    def _naive(self, query: Query, r: int, beliefs: Beliefs) -> float:
        """What the cost of r changes by when TTFT is booked seconds less those elapsed."""
        q, row = query.numbers, beliefs.rows[r]
        ttft_s = self._through_s(query, r, beliefs) - float(q[col.NOW_S])
        target_s = float(q[col.TARGET_TTFT_S])
        own = float(missed_ttft(beliefs.rows, r, ttft_s, target_s))
        return float((ttft_s - row[col.TTFT_S]) / target_s + own - row[col.OWN_MISS])


INGREDIENTS: tuple[str, ...] = ("hits", "predicted TTFT", *_DROPPED, "pass-awareness")
Maker = Callable[[], Ablated]
