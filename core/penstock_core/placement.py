"""Where a request goes, what was predicted for it, and why: the value that the director hands to dispatch.

Made by a policy, carried out by `dispatch`, shown by `penstock explain`. It holds no sockets and changes nothing.
"""

import msgspec

from penstock_core.endpoint import Endpoint


class Candidate(msgspec.Struct, frozen=True):
    """One considered (prefill, decode) choice with the terms of its cost, kept so that `explain` can say why it lost."""

    decode: str
    """Endpoint id."""
    prefill: str | None
    """Endpoint id; None where the decode endpoint prefills itself."""
    hit_tokens: int
    ttft_s: float
    itl_s: float
    terms: dict[str, float]
    """Cost by term name (`ttft`, `own_miss`, `others_miss`, `work`, …); a policy without seconds gives its own score."""
    cost: float


class Placement(msgspec.Struct, frozen=True):
    """A decision. `prefill` is None for decode-only; `decode` is None while a sequential connector has not bound it yet."""

    decode: Endpoint | None
    prefill: Endpoint | None
    hit_chunks: int
    """Leading chunks believed held where the prompt is prefilled."""
    hit_tokens: int
    """`hit_chunks` in estimated tokens."""
    ttft_s: float | None
    """Predicted seconds from now to the first token; None for a policy that predicts nothing."""
    itl_s: float | None
    reason: str
    """One word for the explain header: `least-cost`, `round-robin`, `only-candidate`, `prefill-fallback`, …"""
    candidates: tuple[Candidate, ...] = ()
    """All considered choices; empty unless explanations were asked for."""
