"""The policies that choose an endpoint, all behind one Protocol: `target-misses` (the default) and three plain ones; see `baselines`.

The scheduler asks them; callers never ask which one they hold. A policy reads beliefs and hits, books nothing, and keeps
no clock. Sources: target-misses: design, "Placement"; prefix-affinity: AIBrix's prefix-cache router.
"""

from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.placement import Candidate

from penstock_router import columns as col
from penstock_router import kernel
from penstock_router.beliefs import Beliefs
from penstock_router.candidates import counted, weighed
from penstock_router.cohorts import Cohort, Rows
from penstock_router.policy_names import POLICY_NAMES, parse_policy

AIBRIX_IMBALANCE = 8.0
"""Running requests by which the endpoints may differ before prefixes stop counting."""


POLICIES = POLICY_NAMES


class Query:
    """The numbers of the request being placed. One object a scheduler, filled anew for every request."""

    __slots__ = ("cells", "chunks", "explain", "numbers", "seed", "slots", "table")

    def __init__(self, table: NDArray[np.float64]) -> None:
        self.numbers = np.zeros(col.ASK)
        self.cells: memoryview[float] = self.numbers.data.cast("B").cast("d")
        self.table = table
        """Output lengths by class, as the kernel takes them."""
        self.slots: NDArray[np.uint16] = np.zeros(0, np.uint16)
        self.chunks: NDArray[np.int32] = np.zeros(0, np.int32)
        self.seed = 0
        self.explain = False


class Choice(msgspec.Struct, frozen=True, gc=False):
    """What a policy chose. `ttft_s` and `itl_s` are None from a policy that predicts nothing."""

    row: int
    divided: bool
    """The prompt is prefilled at `row` and decoded elsewhere."""
    hit_tokens: int
    ttft_s: float | None
    itl_s: float | None
    candidates: tuple[Candidate, ...]


class Policy(Protocol):
    """Every method gives None where there is no candidate."""

    @property
    def name(self) -> str: ...

    @property
    def reason(self) -> str:
        """Word for the explain header."""

    def start(self, query: Query, cohort: Cohort, beliefs: Beliefs) -> Choice | None:
        """Where the prompt is prefilled, and whether it is decoded there too."""

    def decode(self, query: Query, rows: Rows, beliefs: Beliefs) -> int | None:
        """The row of `rows` where a prefilled prompt is decoded."""


class TargetMisses:
    """Predicted TTFT, expected number of newly missed targets, and work; see the kernel."""

    name = "target-misses"
    reason = "least-cost"

    def __init__(self, shortlist: int = 16) -> None:
        self._shortlist = shortlist

    def start(self, query: Query, cohort: Cohort, beliefs: Beliefs) -> Choice | None:
        if not len(cohort.wholes):
            return self._least(query, cohort.prefills, beliefs, True) if len(cohort.prefills) else None
        choice = self._least(query, cohort.wholes, beliefs, False)
        if not len(cohort.pair_prefills):
            return choice
        cost = beliefs.row_cells[choice.row * col.ROW + col.COST]
        row = kernel.least_pair(
            beliefs.rows, beliefs.streams, query.table, cohort.pair_prefills, cohort.pair_decodes, beliefs.row_of_slot,
            query.slots, query.chunks, query.numbers, query.seed, self._shortlist,
        )  # fmt: skip
        pairs = weighed(beliefs, cohort.pair_prefills, True) if query.explain else ()
        if row < 0 or beliefs.row_cells[row * col.ROW + col.COST] >= cost:
            return msgspec.structs.replace(choice, candidates=choice.candidates + pairs)
        return _predicted(beliefs, row, True, choice.candidates + pairs)

    def _least(self, query: Query, rows: Rows, beliefs: Beliefs, divided: bool) -> Choice:
        index = kernel.least_cost(
            beliefs.rows, beliefs.streams, query.table, rows, beliefs.row_of_slot, query.slots, query.chunks,
            query.numbers, query.seed, divided, query.explain,
        )  # fmt: skip
        return _predicted(beliefs, int(rows[index]), divided, weighed(beliefs, rows, divided) if query.explain else ())

    def decode(self, query: Query, rows: Rows, beliefs: Beliefs) -> int | None:
        index = kernel.least_step(
            beliefs.rows, rows, beliefs.row_of_slot, query.slots, query.chunks, query.numbers, query.seed
        )  # fmt: skip
        return None if index < 0 else int(rows[index])


class LeastRequest:
    """Fewest requests booked and not over, ties at random."""

    name = "least-request"
    reason = "least-request"
    _imbalance = -1.0

    def start(self, query: Query, cohort: Cohort, beliefs: Beliefs) -> Choice | None:
        return _counted(query, cohort.starters, cohort, beliefs, self._imbalance)

    def decode(self, query: Query, rows: Rows, beliefs: Beliefs) -> int | None:
        index = _fewest(query, rows, beliefs, -1.0)
        return None if index < 0 else int(rows[index])


class PrefixAffinity(LeastRequest):
    """AIBrix's rule: the longest hit among those running at most mean + deviation, unless the counts differ by more than 8."""

    name = "prefix-affinity"
    reason = "prefix-affinity"
    _imbalance = AIBRIX_IMBALANCE


class RoundRobin:
    """One after the other, in the order of rows."""

    name = "round-robin"
    reason = "round-robin"

    def __init__(self) -> None:
        self._started = 0
        self._decoded = 0

    def start(self, query: Query, cohort: Cohort, beliefs: Beliefs) -> Choice | None:
        rows = cohort.starters
        if not len(rows):
            return None
        at = self._started % len(rows)
        self._started += 1
        choice = _counted(query, rows[at : at + 1], cohort, beliefs, -1.0)
        if choice is not None and query.explain:
            _fewest(query, rows, beliefs, -1.0)  # for the hits of the others
            return msgspec.structs.replace(choice, candidates=counted(beliefs, rows, cohort.divided))
        return choice

    def decode(self, query: Query, rows: Rows, beliefs: Beliefs) -> int | None:
        if not len(rows):
            return None
        self._decoded += 1
        return int(rows[(self._decoded - 1) % len(rows)])


def policy_named(name: str, shortlist: int = 16) -> Policy:
    """The policy of that name, as `policy_names` writes it. Raises ValueError listing the allowed names."""
    from penstock_router.baselines import baseline_named  # they are written in terms of this module

    kind, scale = parse_policy(name)
    if kind == "target-misses":
        return TargetMisses(shortlist)
    for plain in (RoundRobin, LeastRequest, PrefixAffinity):
        if plain.name == kind:
            policy: Policy = plain()
            return policy
    return baseline_named(kind, scale)


def _fewest(query: Query, rows: Rows, beliefs: Beliefs, imbalance: float) -> int:
    index: int = kernel.least_running(
        beliefs.rows, rows, beliefs.row_of_slot, query.slots, query.chunks, query.numbers, query.seed, imbalance
    )
    return index


def _counted(query: Query, rows: Rows, cohort: Cohort, beliefs: Beliefs, imbalance: float) -> Choice | None:
    index = kernel.least_running(beliefs.rows, rows, beliefs.row_of_slot, query.slots, query.chunks, query.numbers, query.seed, imbalance)
    if index < 0:
        return None
    row = int(rows[index])
    hit = int(beliefs.row_cells[row * col.ROW + col.HIT_TOKENS])
    return Choice(row, row in cohort.divided, hit, None, None, counted(beliefs, rows, cohort.divided) if query.explain else ())


def _predicted(beliefs: Beliefs, row: int, divided: bool, candidates: tuple[Candidate, ...]) -> Choice:
    cells, base = beliefs.row_cells, row * col.ROW
    return Choice(row, divided, int(cells[base + col.HIT_TOKENS]), cells[base + col.TTFT_S], cells[base + col.ITL_S], candidates)
