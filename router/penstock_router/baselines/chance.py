"""`random`, and `power-of-two`: the less loaded of two drawn at random.

Sources: `random` is in every router. Two choices: Mitzenmacher, "The power of two choices in randomized load balancing"
(IEEE TPDS 2001); the gateways of SGLang and vLLM offer it, counting requests. What is drawn depends on the query's seed
alone.
"""

from penstock_router import columns as col
from penstock_router import kernel
from penstock_router.baselines.priced import NOTHING
from penstock_router.beliefs import Beliefs
from penstock_router.candidates import counted
from penstock_router.cohorts import Cohort, Rows
from penstock_router.policies import Choice, Query


class PowerOfTwo:
    """Of two different endpoints drawn at random the one with fewer requests booked and not over, ties at random."""

    name = "power-of-two"
    reason = "power-of-two"
    _draws = 2

    def start(self, query: Query, cohort: Cohort, beliefs: Beliefs) -> Choice | None:
        rows = cohort.starters
        row = self._drawn(query, rows, beliefs)
        if row is None:
            return None
        hit = int(beliefs.row_cells[row * col.ROW + col.HIT_TOKENS])
        if query.explain:
            _fewest(query, rows, beliefs)  # for the hits of those that were not drawn
        return Choice(row, row in cohort.divided, hit, None, None, counted(beliefs, rows, cohort.divided) if query.explain else ())

    def decode(self, query: Query, rows: Rows, beliefs: Beliefs) -> int | None:
        return self._drawn(query, rows, beliefs)

    def _drawn(self, query: Query, rows: Rows, beliefs: Beliefs) -> int | None:
        if not len(rows):
            return None
        picked = rows[list(drawn(query.seed, len(rows), self._draws))]
        return int(picked[_fewest(query, picked, beliefs)])


class RandomChoice(PowerOfTwo):
    """Any endpoint, each as likely as another."""

    name = "random"
    reason = "random"
    _draws = 1


def drawn(seed: int, among: int, draws: int) -> tuple[int, ...]:
    """One or two different indices below `among` (at least 1), each pair as likely as another. `seed`: 32 random bits."""
    first = seed % among
    if draws == 1 or among == 1:
        return (first,)
    return first, (first + 1 + seed // among % (among - 1)) % among


def _fewest(query: Query, rows: Rows, beliefs: Beliefs) -> int:
    index: int = kernel.least_running(
        beliefs.rows, rows, beliefs.row_of_slot, query.slots, query.chunks, query.numbers, query.seed, NOTHING
    )
    return index
