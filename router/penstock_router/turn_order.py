"""In which order requests that came in one instant are placed, and sent: engines take them in that order.

The scheduler asks; whoever sends (the turn, the simulator) keeps to it, because beliefs count a worker's queue in order of
placing. Where workers also decode, the longest prompt goes first: it needs the emptiest worker, and what is short
then fills the others evenly. In a dedicated prefill pool nobody's stream is stalled, and the shortest first makes waits
short; only those go before that would miss their target behind the others and can still meet it.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Need(NamedTuple):
    """What one request of the instant needs, in seconds."""

    alone_s: float
    """Of prefill, on an idle worker, after its best hit."""
    slack_s: float
    """From that, and the hand-over, to its TTFT target."""


def longest_first(prompt_tokens: Sequence[int]) -> list[int]:
    """Indices, longest prompt first; equal ones as they came."""
    return sorted(range(len(prompt_tokens)), key=lambda at: -prompt_tokens[at])


def tightest_first(needs: Sequence[Need], workers: int) -> list[int]:
    """Indices: those that cannot wait for their share of this instant's work, least slack first; then the shortest first.

    One that misses its target even alone does not go before: it would make others miss theirs as well.
    """
    queue_s = sum(need.alone_s for need in needs) / max(1, workers)

    def rank(at: int) -> tuple[int, float]:
        need = needs[at]
        return (0, need.slack_s) if 0.0 <= need.slack_s < queue_s else (1, need.alone_s)

    return sorted(range(len(needs)), key=rank)
