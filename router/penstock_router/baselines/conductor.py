"""`conductor`, Mooncake's scheduler: least predicted TTFT, every queued prompt counted with its own prefill time.

Source: Qin et al., "Mooncake: A KVCache-centric Disaggregated Architecture for LLM Serving" (FAST 2025; arXiv 2407.00079),
algorithm 1, its cache-aware branch. Fetching a longer prefix from another worker and refusing requests are left out: no
engine here does the one, the other is admission's. The scheduler asks it like any other policy.
"""

from collections import deque

import numpy as np
from penstock_core.profile import PASS_TOKENS, TRANSFER_TOKEN

from penstock_router import columns as col
from penstock_router import kernel
from penstock_router.baselines.priced import Prices, choice, hit_tokens
from penstock_router.beliefs import Beliefs
from penstock_router.cohorts import Cohort, Rows
from penstock_router.policies import Choice, Query


class Conductor:
    """Σ alone(u_i) over the prompts without a first token there + alone(n − h) + seconds to hand n tokens of KV over.

    alone(u) are the seconds of u prompt tokens on an idle endpoint, in passes of its token budget. The hand-over counts for
    dedicated prefill endpoints. After a prefill elsewhere the decode endpoint with the least predicted step is taken.

    Beliefs know how many prompts wait, not which: the seconds of each are kept here in order of placing, and the oldest are
    taken for those that got their first token. So the sum forgets what it need not know: nobody reports to a policy.
    """

    name = "conductor"
    reason = "conductor"

    def __init__(self) -> None:
        self._queues: list[deque[float]] = []  # by row: seconds of each prompt, oldest first
        self._prompts = np.zeros(0)  # by row: their number, and below their sum
        self._queued_s = np.zeros(0)

    def start(self, query: Query, cohort: Cohort, beliefs: Beliefs) -> Choice | None:
        rows = cohort.starters
        if not len(rows):
            return None
        queue_s = self._waiting_s(rows, beliefs)
        n = query.cells[col.PROMPT]
        new = n - hit_tokens(query, rows, beliefs)
        budgets = np.maximum(1.0, beliefs.rows[rows, PASS_TOKENS])
        one_by_one = zip(rows.tolist(), new.tolist(), budgets.tolist(), strict=True)
        own_s = np.array([kernel.through_s(beliefs.rows, r, u, budget, 0.0) for r, u, budget in one_by_one])
        away = np.array([r in cohort.divided for r in rows.tolist()])
        transfer_s: Prices = np.where(away, n * beliefs.rows[rows, TRANSFER_TOKEN], 0.0)
        terms = {"queue": queue_s, "own": own_s, "transfer": transfer_s}
        chosen = choice(query, cohort, beliefs, queue_s + own_s + transfer_s, terms, seconds=True)
        self._join(chosen.row, _alone_s(beliefs, chosen.row, n - chosen.hit_tokens))
        return chosen

    def decode(self, query: Query, rows: Rows, beliefs: Beliefs) -> int | None:
        index = kernel.least_step(
            beliefs.rows, rows, beliefs.row_of_slot, query.slots, query.chunks, query.numbers, query.seed
        )  # fmt: skip
        return None if index < 0 else int(rows[index])

    def _waiting_s(self, rows: Rows, beliefs: Beliefs) -> Prices:
        """Seconds of all prompts without a first token at each row; foreign ones, whose number is unknown, as one."""
        self._fit(len(beliefs.rows))
        left = beliefs.rows[rows, col.PROMPTS]
        for i in np.flatnonzero(self._prompts[rows] > left).tolist():
            self._forget(int(rows[i]), int(left[i]))
        waiting: Prices = self._queued_s[rows]
        foreign = beliefs.rows[rows, col.FOREIGN_PROMPT]
        for i in np.flatnonzero(foreign > 0.0).tolist():
            waiting[i] += _alone_s(beliefs, int(rows[i]), float(foreign[i]))
        return waiting

    def _fit(self, rows: int) -> None:
        more = rows - len(self._queues)
        if more > 0:
            self._queues += [deque() for _ in range(more)]
            self._prompts = np.concatenate([self._prompts, np.zeros(more)])
            self._queued_s = np.concatenate([self._queued_s, np.zeros(more)])

    def _join(self, r: int, seconds: float) -> None:
        self._queues[r].append(seconds)
        self._prompts[r] += 1.0
        self._queued_s[r] += seconds

    def _forget(self, r: int, left: int) -> None:
        """All but the last `left` prompts of row r are through, or given up."""
        queue = self._queues[r]
        while len(queue) > left:
            self._queued_s[r] -= queue.popleft()
        self._prompts[r] = left
        if not queue:
            self._queued_s[r] = 0.0  # and not what rounding left


def _alone_s(beliefs: Beliefs, r: int, tokens: float) -> float:
    """Seconds of a prompt of so many new tokens at row r if nothing else ran there."""
    return float(kernel.through_s(beliefs.rows, r, tokens, max(1.0, beliefs.rows[r, PASS_TOKENS]), 0.0))
