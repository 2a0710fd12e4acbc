"""Output lengths per class of requests, beside those of the whole model. One a served model; the scheduler owns it.

A class is a kind of request that may have lengths of its own: which API, tools or not, adapter, bucket of max_tokens, bucket
of the prompt (`class_of`). Its own table is followed only while it has predicted the class's newest answers better than the
model's table would have; else, and with too few answers, the model's is, which falls back to a declared one (`lengths`).
"""

import math
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock_router.columns import EVERYTHING, LONGEST_TOKENS, SHORTER
from penstock_router.lengths import OutputLengths

MOST_CLASSES = 24
"""Tables that are kept (131 KB each), that of the whole model included; further classes wait for one and follow the model's."""
LEAST_ANSWERS = 64
"""Answers of a class before its own table may be followed."""
_NEWEST_WEIGHT = 1 / 64
_BETTER, _WORSE = 0.05, 0.0
"""Mean gain in predicted log-probability (nats an answer) at which a class's table begins, and ceases, to be followed."""
_LEAST_SHARE = 1e-4
_SCORE_EVERY = 16
_FORGOTTEN_ANSWERS = 4_096
"""A class without an answer for so many of others gives up its table."""


class Kind(NamedTuple):
    """A class: what is known of a request before it is answered."""

    capability: str
    adapter: str
    tools: bool
    most_bucket: int
    """Powers of two of max_tokens; −1: none given."""
    prompt_bucket: int
    """Powers of two of prompt tokens."""


def class_of(capability: str, adapter: str, tools: bool, max_tokens: int | None, prompt_tokens: int) -> Kind:
    """The class of a request."""
    return Kind(capability, adapter, tools, -1 if max_tokens is None else max_tokens.bit_length(), prompt_tokens.bit_length())


class ClassState(NamedTuple):
    """What `explain` and metrics show of one class."""

    name: str
    answers: int
    mean_tokens: int
    gain: float
    """Nats an answer by which its own table has predicted better than the model's lately."""
    followed: bool


class _Class:
    __slots__ = ("followed", "gain", "index", "last", "lengths", "unscored")

    def __init__(self, index: int, lengths: OutputLengths) -> None:
        self.index, self.lengths = index, lengths
        self.gain = 0.0
        self.last = 0  # number of its newest answer, among all
        self.followed = False
        self.unscored: list[int] = []


class LengthClasses:
    """State: the tables, the classes met so far, and for each whether it is followed."""

    def __init__(self) -> None:
        self.tables: NDArray[np.float64] = np.zeros((MOST_CLASSES, 2, LONGEST_TOKENS + 1))
        """Shape (MOST_CLASSES, 2, LONGEST_TOKENS + 1), class EVERYTHING first; changed in place."""
        self.model = OutputLengths(self.tables[EVERYTHING])
        self._classes: dict[Hashable, _Class] = {}
        self._followed: dict[Hashable, _Class] = {}
        self._answers = 0

    def follows(self, kind: Hashable) -> int:
        """Which table a request of this class follows."""
        one = self._followed.get(kind) if self._followed else None
        return EVERYTHING if one is None else one.index

    def expected_tokens(self, kind: Hashable, most: int | None) -> int:
        """Mean of min(length, most) under the table that the class follows, rounded up."""
        one = self._followed.get(kind) if self._followed else None
        return (self.model if one is None else one.lengths).expected_tokens(most)

    def observe(self, kind: Hashable, output_tokens: int) -> None:
        """An answer of this class ended by itself, or at its token limit; fewer than 1 token is passed over."""
        if output_tokens < 1:
            return
        self.model.observe(output_tokens)
        self._answers += 1
        if kind is None:
            return
        one = self._classes.get(kind)
        if one is None:
            one = self._begin(kind)
            if one is None:
                return
        one.last = self._answers
        one.unscored.append(min(output_tokens, LONGEST_TOKENS))
        if len(one.unscored) >= _SCORE_EVERY:
            self._learn(kind, one)

    def _begin(self, kind: Hashable) -> _Class | None:
        """Room for a new class: a free table, or that of a class which had its chance, or is not asked for any more."""
        index = len(self._classes) + 1
        if index >= MOST_CLASSES:
            gone = min(
                (
                    (one.last, other)
                    for other, one in self._classes.items()
                    if not one.followed and (one.lengths.observed >= LEAST_ANSWERS or self._answers - one.last > _FORGOTTEN_ANSWERS)
                ),
                key=lambda pair: pair[0],
                default=None,
            )
            if gone is None:
                return None
            index = self._classes.pop(gone[1]).index
        one = self._classes[kind] = _Class(index, OutputLengths(self.tables[index], self.model.shares()))
        return one

    def _learn(self, kind: Hashable, one: _Class) -> None:
        """Score both tables on answers that neither the class nor (but for a few) the model has learned from, then learn."""
        own, model = self.tables[one.index, SHORTER], self.tables[EVERYTHING, SHORTER]
        buckets = [tokens.bit_length() for tokens in one.unscored]
        gains = {bucket: _log_share(own, bucket) - _log_share(model, bucket) for bucket in set(buckets)}
        for bucket in buckets:
            one.gain += _NEWEST_WEIGHT * (gains[bucket] - one.gain)
        one.lengths.observe_all(one.unscored)
        one.unscored.clear()
        if one.lengths.learns_within(_SCORE_EVERY):  # a prior set earlier would be replaced before it is used
            one.lengths.start_from(self.model.shares())
        one.followed = one.lengths.observed >= LEAST_ANSWERS and one.gain > (_WORSE if one.followed else _BETTER)
        if one.followed:
            self._followed[kind] = one
        else:
            self._followed.pop(kind, None)

    @property
    def followed(self) -> int:
        """Classes whose own table is followed."""
        return len(self._followed)

    def states(self) -> list[ClassState]:
        """All classes, the whole model first."""
        whole = ClassState("model", self.model.observed, self.model.expected_tokens(), 0.0, True)
        return [whole] + [
            ClassState(_shown(kind), one.lengths.observed, one.lengths.expected_tokens(), one.gain, one.followed)
            for kind, one in self._classes.items()
        ]


def _log_share(shorter: NDArray[np.float64], bucket: int) -> float:
    """Log-probability of the lengths of so many bits: single lengths are too many to be compared."""
    low = 1 << (bucket - 1)
    upto = 1.0 if low >= LONGEST_TOKENS else float(shorter[min(2 * low, LONGEST_TOKENS)])
    return math.log(max(upto - float(shorter[low]), _LEAST_SHARE))


def _shown(kind: Hashable) -> str:
    if not isinstance(kind, Kind):
        return str(kind)
    adapter = f" {kind.adapter}" if kind.adapter else ""
    tools = " tools" if kind.tools else ""
    most = "" if kind.most_bucket < 0 else f" max_tokens<{1 << kind.most_bucket}"
    return f"{kind.capability}{adapter}{tools}{most} prompt<{1 << kind.prompt_bucket}"
