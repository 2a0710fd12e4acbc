"""`lmetric`: new prefill tokens times batch size, least first; no weight to tune.

Source: Zhang et al., "LMetric: Simple is Better – Multiplication May Be All You Need for LLM Request Scheduling"
(arXiv 2603.15202, 2026). The scheduler asks it like any other policy.
"""

from penstock_router import columns as col
from penstock_router import kernel
from penstock_router.baselines.priced import Prices, choice, hit_tokens, least
from penstock_router.beliefs import Beliefs
from penstock_router.cohorts import Cohort, Rows
from penstock_router.policies import Choice, Query


class LMetric:
    """(U − D + n − h) · (requests in work there + 1).

    The newcomer counts in its batch, because with a plain product all idle endpoints would cost 0 whatever they hold.
    Prompt tokens count until they are computed, by the beliefs about passes. After a prefill elsewhere no prompt tokens
    are left to compute, so the decode endpoint with the smallest batch is taken.
    """

    name = "lmetric"
    reason = "lmetric"

    def start(self, query: Query, cohort: Cohort, beliefs: Beliefs) -> Choice | None:
        rows = cohort.starters
        if not len(rows):
            return None
        now, n = query.cells[col.NOW_S], query.cells[col.PROMPT]
        for r in rows[_waiting(rows, beliefs) > 0.0].tolist():
            kernel.advance(beliefs.rows, r, now)
        tokens = _waiting(rows, beliefs) + n - hit_tokens(query, rows, beliefs)
        batch = _batch(rows, beliefs) + 1.0
        return choice(query, cohort, beliefs, tokens * batch, {"new_tokens": tokens, "batch": batch}, seconds=False)

    def decode(self, query: Query, rows: Rows, beliefs: Beliefs) -> int | None:
        return int(rows[least(_batch(rows, beliefs), rows, query.seed)]) if len(rows) else None


def _waiting(rows: Rows, beliefs: Beliefs) -> Prices:
    """Prompt tokens at each row that are not computed yet, foreign ones included."""
    told = beliefs.rows[rows]
    waiting: Prices = told[:, col.BOOKED] + told[:, col.FOREIGN_PROMPT] - told[:, col.COMPUTED]
    return waiting


def _batch(rows: Rows, beliefs: Beliefs) -> Prices:
    """Requests that wait or run at each row, foreign ones included."""
    batch: Prices = beliefs.rows[rows, col.RUNNING] + beliefs.rows[rows, col.FOREIGN_STREAMS]
    return batch
