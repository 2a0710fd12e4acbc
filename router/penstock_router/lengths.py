"""How long answers are: one distribution F of output lengths, learned from completions. `length_classes` keeps several.

Until completions are known it is what was declared (a prior), which fades with every completion; old completions fade too,
so that it follows drift. Where the newest completions are plainly not from F, what is older is forgotten at once. It knows
no request and no class.
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock_router import columns
from penstock_router.columns import LONGEST_TOKENS, SHORTER, STATIONARY
from penstock_router.machine_code import Compiler

compiled = Compiler(Path(__file__), Path(columns.__file__))

PRIOR_MEAN_TOKENS = 256
_PRIOR_WEIGHT = 16.0
"""The prior counts like this many completions."""
_MOST_WEIGHT = 4_096.0
"""Counts are halved beyond this many completions."""
_LEARN_EVERY = 16
"""Fewest completions between two rebuilds of the tables (some 200 µs each)."""
_LEARN_SHARE = 1 / 16
"""A rebuild also waits until this share of what is known is new: less would not move the tables."""
_NEWEST = 128
"""Completions whose ranks under F are looked at."""
_KEPT = 32
"""Newest completions that are kept when all older ones are forgotten."""
_WORST_FIT = 0.25
"""Largest distance between the ranks of the newest completions and uniform ones (Kolmogorov); by chance above this once in 10⁶."""

_EVERY_LENGTH = np.arange(LONGEST_TOKENS + 1.0)
_GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly."""

Shares = NDArray[np.float64]
"""P(length = o) for o = 0..LONGEST_TOKENS, adding up to 1."""


def declared_shares() -> Shares:
    """What is believed before any completion: geometric lengths of PRIOR_MEAN_TOKENS on average."""
    survive = 1.0 - 1.0 / PRIOR_MEAN_TOKENS
    shares = np.zeros(LONGEST_TOKENS + 1)
    shares[1:] = (1.0 - survive) * survive ** np.arange(LONGEST_TOKENS)
    shares[LONGEST_TOKENS] += 1.0 - shares.sum()
    return shares


@compiled
def fill_at_once(prior: Shares, counts: Shares, prior_weight: float, weight: float, table: Shares, survival: Shares) -> None:
    """The rows of a class's table and E min(length, m) in one pass: eleven passes of numpy's were a tenth of a small request's cost."""
    below, row, total = table[SHORTER], table[STATIONARY], prior_weight + weight
    upto, survived, area = 0.0, 0.0, 0.0
    row[0] = 0.0
    for k in range(1, len(row)):
        area += below[k - 1]
        upto += (prior[k - 1] * prior_weight + counts[k - 1]) / total
        below[k] = min(upto, 1.0)  # P(length < k)
        survived += 1.0 - below[k]
        survival[k] = survived  # Σ_{j=1..k} P(length ≥ j)
        row[k] = k * below[k] - area  # Σ_{g<k} (F(k) − F(g))
    for k in range(1, len(row)):
        row[k] /= survived


class OutputLengths:
    """Lengths in tokens, 1..LONGEST_TOKENS; longer ones count as LONGEST_TOKENS. `table`: rows SHORTER and STATIONARY."""

    def __init__(self, table: NDArray[np.float64] | None = None, prior: Shares | None = None) -> None:
        self._prior = declared_shares() if prior is None else prior
        self._counts = np.zeros(LONGEST_TOKENS + 1)
        self._weight = 0.0
        self._unlearned: list[int] = []
        self._learn_at = _LEARN_EVERY  # so many unlearned ones are learned from
        self._newest: NDArray[np.int64] = np.zeros(0, np.int64)
        self._ranks = np.zeros(0)
        self.table = np.zeros((2, LONGEST_TOKENS + 1)) if table is None else table
        """Rows SHORTER and STATIONARY of the kernel, shape (2, LONGEST_TOKENS + 1); changed in place."""
        self._survival = np.zeros(LONGEST_TOKENS + 1)
        self._mean_upto: memoryview[float] = self._survival.data.cast("B").cast("d")  # of the same array: quicker to read one by one
        self.mean_tokens = 0.0
        """Mean length, rounded up."""
        self.observed = 0
        """Completions so far."""
        self.forgotten = 0
        """How often the past was forgotten because the newest completions were not of its kind."""
        self._fill()

    @property
    def weight(self) -> float:
        """Completions that the learned part counts for; the prior counts for 16."""
        return self._weight

    def observe(self, output_tokens: int) -> None:
        """An answer ended by itself, or at its token limit, after `output_tokens` tokens; fewer than 1 is passed over."""
        if output_tokens < 1:
            return
        self._unlearned.append(min(output_tokens, LONGEST_TOKENS))
        if len(self._unlearned) >= self._learn_at:
            self.learn()

    def observe_all(self, lengths: list[int]) -> None:
        """Several such answers, of 1..LONGEST_TOKENS tokens each, one after the other."""
        unlearned = self._unlearned
        while len(unlearned) + len(lengths) >= self._learn_at:
            room = self._learn_at - len(unlearned)
            unlearned += lengths[:room]
            lengths = lengths[room:]
            self.learn()
        unlearned += lengths

    def learn(self) -> None:
        """Take in what was observed since the last time."""
        new = np.array(self._unlearned, np.int64)
        self._unlearned.clear()
        below = self.table[SHORTER]
        upto = np.where(new < LONGEST_TOKENS, below[np.minimum(new + 1, LONGEST_TOKENS)], 1.0)
        # Evenly within each length's own share: a length that everybody has must not look like a misfit.
        within = (np.arange(self.observed, self.observed + len(new)) * _GOLDEN) % 1.0
        ranks = below[new] + within * (upto - below[new])
        self._ranks = np.append(self._ranks, ranks)[-_NEWEST:]  # before learning from them
        self.observed += len(new)
        self._newest = np.append(self._newest, new)[-_NEWEST:]
        if len(self._ranks) == _NEWEST and self._misfit() > _WORST_FIT:
            new = self._newest[-_KEPT:]
            self._counts[:] = 0.0
            self._weight = 0.0
            self._ranks = self._ranks[:0]
            self.forgotten += 1
        np.add.at(self._counts, new, 1.0)
        self._weight += len(new)
        if self._weight > _MOST_WEIGHT:
            self._counts *= 0.5
            self._weight *= 0.5
        self._learn_at = math.ceil(max(_LEARN_EVERY, min(_NEWEST, self._weight * _LEARN_SHARE)))
        self._fill()

    def learns_within(self, answers: int) -> bool:
        """Whether so many more observed answers bring a rebuild."""
        return len(self._unlearned) + answers >= self._learn_at

    def _misfit(self) -> float:
        ranks = np.sort(self._ranks)
        steps = np.arange(len(ranks) + 1) / len(ranks)
        return float(max(np.max(steps[1:] - ranks), np.max(ranks - steps[:-1])))

    def expected_tokens(self, most: int | None = None) -> int:
        """Mean of min(length, most), rounded up."""
        if most is None or most >= LONGEST_TOKENS:
            return int(self.mean_tokens)
        return math.ceil(self._mean_upto[most]) if most > 0 else 0

    def shares(self) -> Shares:
        """The distribution in force; a new array."""
        shares: Shares = (self._prior * _PRIOR_WEIGHT + self._counts) / (_PRIOR_WEIGHT + self._weight)
        return shares

    def start_from(self, prior: Shares) -> None:
        """Another prior, from the next rebuild on."""
        self._prior = prior

    def _fill(self) -> None:
        if compiled.works:
            fill_at_once(self._prior, self._counts, _PRIOR_WEIGHT, self._weight, self.table, self._survival)
        else:
            self._fill_by_rows()
        self.mean_tokens = float(math.ceil(self._mean_upto[LONGEST_TOKENS]))

    def _fill_by_rows(self) -> None:
        """What `fill_at_once` does, for where it is not compiled."""
        shares = self.shares()
        below = self.table[SHORTER]
        np.cumsum(shares[:-1], out=below[1:])  # below[k] = P(length < k)
        np.minimum(below, 1.0, out=below)
        np.cumsum(1.0 - below[1:], out=self._survival[1:])  # Σ_{k=1..m} P(length ≥ k) = E min(length, m)
        row = self.table[STATIONARY]
        row[0] = 0.0
        np.cumsum(below[:-1], out=row[1:])  # Σ_{g<k} F(g)
        np.subtract(_EVERY_LENGTH * below, row, out=row)
        row /= self._survival[-1]
