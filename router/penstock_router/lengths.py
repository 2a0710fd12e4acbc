"""How long answers are: the distribution F of output lengths, learned from completions. One a served model.

The scheduler feeds it and hands its tables to the kernel. Until completions are known a geometric prior of
PRIOR_MEAN_TOKENS answers, then it fades with every completion; old completions fade too, so that it follows drift.
"""

import math

import numpy as np
from numpy.typing import NDArray

from penstock_router.columns import LONGEST_TOKENS, SHORTER, STATIONARY

PRIOR_MEAN_TOKENS = 256
_PRIOR_WEIGHT = 16.0
"""The prior counts like this many completions."""
_MOST_WEIGHT = 4_096.0
"""Counts are halved beyond this many completions."""
_LEARN_EVERY = 16
"""Fewest completions between two rebuilds of the tables (some 200 µs each)."""
_LEARN_SHARE = 1 / 16
"""A rebuild also waits until this share of what is known is new: less would not move the tables."""


class OutputLengths:
    """Lengths in tokens, 1..LONGEST_TOKENS; longer ones count as LONGEST_TOKENS."""

    def __init__(self) -> None:
        survive = 1.0 - 1.0 / PRIOR_MEAN_TOKENS
        shares = np.zeros(LONGEST_TOKENS + 1)  # shares[o] = P(length = o)
        shares[1:] = (1.0 - survive) * survive ** np.arange(LONGEST_TOKENS)
        shares[LONGEST_TOKENS] += 1.0 - shares.sum()
        self._prior = shares * _PRIOR_WEIGHT
        self._counts = np.zeros(LONGEST_TOKENS + 1)
        self._weight = 0.0
        self._unlearned: list[int] = []
        self.table: NDArray[np.float64] = np.zeros((2, LONGEST_TOKENS + 1))
        """Rows SHORTER and STATIONARY of the kernel; changed in place."""
        self._survival = np.zeros(LONGEST_TOKENS + 1)
        self._fill()

    def observe(self, output_tokens: int) -> None:
        """An answer ended by itself, or at its token limit, after `output_tokens` tokens; fewer than 1 is passed over."""
        if output_tokens < 1:
            return
        self._unlearned.append(min(output_tokens, LONGEST_TOKENS))
        if len(self._unlearned) >= max(_LEARN_EVERY, self._weight * _LEARN_SHARE):
            self.learn()

    def learn(self) -> None:
        """Take in what was observed since the last time."""
        np.add.at(self._counts, self._unlearned, 1.0)
        self._weight += len(self._unlearned)
        self._unlearned.clear()
        if self._weight > _MOST_WEIGHT:
            self._counts *= 0.5
            self._weight *= 0.5
        self._fill()

    def expected_tokens(self, most: int | None = None) -> int:
        """Mean of min(length, most), rounded up."""
        return math.ceil(float(self._survival[LONGEST_TOKENS if most is None else max(0, min(most, LONGEST_TOKENS))]))

    def _fill(self) -> None:
        shares = (self._prior + self._counts) / (_PRIOR_WEIGHT + self._weight)
        below = self.table[SHORTER]
        np.cumsum(shares[:-1], out=below[1:])  # below[k] = P(length < k)
        np.minimum(below, 1.0, out=below)
        np.cumsum(1.0 - below[1:], out=self._survival[1:])  # Σ_{k=1..m} P(length ≥ k) = E min(length, m)
        k = np.arange(LONGEST_TOKENS + 1)
        before = np.concatenate(([0.0], np.cumsum(below[:-1])))  # Σ_{g<k} F(g)
        self.table[STATIONARY] = (k * below - before) / self._survival[-1]
