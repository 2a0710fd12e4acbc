"""Whose a request is and how much it matters, how a line behaves, and what is said to one that may not start. Values only.

The director makes a Claim from the API key and the priority header, the simulator from its setup.
"""

import msgspec
from penstock_core.errors import Outcome

LEAST_RETRY_S = 1
MOST_RETRY_S = 60


class Claim(msgspec.Struct, frozen=True):
    """A request's standing."""

    tenant: str = "anonymous"
    weight: float = 1.0
    """Share among tenants; more than 0."""
    priority: int = 0
    """−100..100; the higher goes first."""


class Turned(msgspec.Struct, frozen=True):
    """A request was turned away, now or after waiting."""

    outcome: Outcome
    message: str
    """For the client: field or figure, its value, what is allowed."""
    retry_after_s: int
    """1..60: when there should be room."""
    expected_s: float | None = None
    """Predicted TTFT it was judged by; None where none was."""


class LineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How one model's line behaves."""

    started: int = 4096
    """Most requests placed and not over."""
    waiting: int = 1024
    """Most requests that wait; 0: none ever waits, and nothing is judged by predictions."""
    patience: float = 2.0
    """A sheddable request waits as long as its predicted TTFT is at most so many times its target."""
    shed_up_to_priority: int = 0
    """Requests of this priority and lower are sheddable."""
    timeout_s: float = 30.0
    """Longest wait of any request."""


def whole_seconds(seconds: float) -> int:
    """What Retry-After can say: whole seconds, LEAST_RETRY_S..MOST_RETRY_S, never less than `seconds` below the top."""
    return int(min(MOST_RETRY_S, max(LEAST_RETRY_S, -(-min(seconds, 1e9) // 1))))
