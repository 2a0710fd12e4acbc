"""The names of all placement policies, and how one is written with its setting: `block-cost:32`.

The configuration, the command line and `policies` use it; it imports nothing, so that a wrong name is refused before
anything heavy is loaded.
"""

POLICY_NAMES = (
    *("target-misses", "round-robin", "least-request", "prefix-affinity"),
    *("random", "power-of-two", "lmetric", "conductor", "block-cost"),
)
"""What can be asked for; `block-cost` may carry a scale."""

MOST_SCALE = 1e6
SCALE_RANGE = f"0..{MOST_SCALE:,.0f}"
ALLOWED = f"{', '.join(POLICY_NAMES)}[:SCALE]"
"""For help and errors."""


def parse_policy(written: str) -> tuple[str, float | None]:
    """Name and scale of a policy; None: its default. Raises ValueError with what is allowed."""
    name, colon, scale = written.partition(":")
    if name not in POLICY_NAMES or (colon and name != "block-cost"):
        raise ValueError(f"policy is {written!r}; allowed: {ALLOWED}")
    if not colon:
        return name, None
    try:
        value = float(scale)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= MOST_SCALE:
        raise ValueError(f"policy is {written!r}; allowed: block-cost:SCALE with a SCALE of {SCALE_RANGE}")
    return name, value
