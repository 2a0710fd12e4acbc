"""Whether what a worker follows of its engine's KV agrees with the engine's own counts: prompt tokens and cached tokens.

`kv_follow` tells it of each answer with usage, and takes the worker's chunks out of the index while it is not `trusted`; the host
exports the counts, and says `exact` while nearly all agree. Synchronous.
"""

from collections import deque

import msgspec

WINDOW = 200
"""Last comparisons that count."""
LEAST = 20
"""Fewer say nothing yet."""
MOST_DISAGREEING = 0.05
DISTRUSTED, TRUSTED_AGAIN = 0.25, 0.1
"""Shares of the last promises that the engine did not keep: beyond the first a worker promises nothing, below the second again."""


class Told(msgspec.Struct, frozen=True):
    """What was worked out before the engine ran the prompt; tokens."""

    prompt_tokens: int
    held_tokens: int
    """Leading tokens whose blocks were held."""
    slack_tokens: int
    """Differences up to here are the grain of chunks and blocks."""


class Agreement:
    """State: the last comparisons, and counts since the start."""

    def __init__(self) -> None:
        self.compared = 0
        self.token_disagreements = 0
        self.hit_disagreements = 0
        self.trusted = True
        """False while so many hits were promised and not found that no promise is better than these."""
        self._last: deque[bool] = deque(maxlen=WINDOW)
        self._promises: deque[bool] = deque(maxlen=WINDOW)

    def compare(self, told: Told, prompt_tokens: int, cached_tokens: int | None) -> bool:
        """Whether both agree. A prompt counted otherwise was rendered otherwise; its cached tokens then say nothing.

        More cached than was held when the request came is no lie: a sibling's blocks came in between.
        """
        self.compared += 1
        agrees = told.prompt_tokens == prompt_tokens
        if not agrees:
            self.token_disagreements += 1
        elif cached_tokens is not None:
            agrees = told.held_tokens - cached_tokens <= told.slack_tokens
            self.hit_disagreements += not agrees
            if told.held_tokens > told.slack_tokens:
                self._judge(agrees)
        self._last.append(agrees)
        return agrees

    def _judge(self, kept: bool) -> None:
        self._promises.append(kept)
        broken = self._promises.count(False)
        most = DISTRUSTED if self.trusted else TRUSTED_AGAIN
        self.trusted = len(self._promises) < LEAST or broken <= most * len(self._promises)

    @property
    def exact(self) -> bool:
        """False once more than a twentieth of the last comparisons disagree."""
        return len(self._last) < LEAST or self._last.count(False) <= MOST_DISAGREEING * len(self._last)
