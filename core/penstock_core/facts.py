"""The one internal contract for what a worker tells a router with an answer: the `x-penstock-facts` header.

Written by the worker's host once the engine has its first output, read by the router's dispatch; unknown fields are
passed over, so both sides may be upgraded in any order. What is known only at the end comes in the usage chunk.
"""

import re

import msgspec

HEADER = b"x-penstock-facts"
REFUSE_HEADER = b"x-penstock-refuse"
"""With status 503: the worker cannot start this request now; `full`, `draining`, `epoch`, or `kv` (prefill again: its KV is gone)."""
SALT_HEADER = b"x-penstock-salt"
TOKEN_HEADER = b"x-penstock-token"
"""The fleet's internal token, on `/penstock/*`, KV pulls and salted requests."""

VERSION = 1
_LONGEST_READ = 2048
"""A longer header is not ours: no number of ours has thousands of digits."""


class Facts(msgspec.Struct, frozen=True):
    """Counts of one request and of the worker at its first output."""

    hit_chunks: int = 0
    """Leading chunks of the prompt that the engine found in its cache."""
    hit_tokens: int = 0
    """The engine's own cached-token count."""
    prompt_tokens: int = 0
    running: int = 0
    waiting: int = 0
    prefill_tokens: int = 0
    kv_used: int = 0
    """Tokens."""
    kv_total: int = 0
    """Tokens."""
    generation: str = ""
    """The worker's kv_generation."""


_NAMES = frozenset(Facts.__struct_fields__) - {"generation"}
# Our own spelling of the header, read in half the time of the tolerant way below.
_AS_WRITTEN = re.compile(
    rb"v=1;hit_chunks=(\d+);hit_tokens=(\d+);prompt_tokens=(\d+);running=(\d+);waiting=(\d+);"
    rb"prefill_tokens=(\d+);kv_used=(\d+);kv_total=(\d+);generation=([ -~]*)"
).fullmatch


def encode_facts(facts: Facts) -> bytes:
    """`v=1;hit_chunks=..;…;generation=..`, plain ASCII."""
    return (
        f"v={VERSION};hit_chunks={facts.hit_chunks};hit_tokens={facts.hit_tokens};prompt_tokens={facts.prompt_tokens};"
        f"running={facts.running};waiting={facts.waiting};prefill_tokens={facts.prefill_tokens};"
        f"kv_used={facts.kv_used};kv_total={facts.kv_total};generation={facts.generation}"
    ).encode()


def decode_facts(value: bytes | None) -> Facts | None:
    """The inverse of `encode_facts`; None for an absent, foreign or malformed header (never an error: it is only a hint)."""
    if value is None or not value.startswith(b"v=1;"):
        return None
    found = _AS_WRITTEN(value)
    if found is not None and len(value) < _LONGEST_READ:
        chunks, hits, prompt, running, waiting, prefill, used, total = map(int, found.groups()[:8])
        return Facts(chunks, hits, prompt, running, waiting, prefill, used, total, found[9].decode("ascii"))
    counts: dict[str, int] = {}
    generation = ""
    try:
        for pair in value.decode("ascii").split(";"):
            name, _, text = pair.partition("=")
            if name in _NAMES:
                counts[name] = int(text)
            elif name == "generation":
                generation = text
    except ValueError:
        return None
    return Facts(**counts, generation=generation)
