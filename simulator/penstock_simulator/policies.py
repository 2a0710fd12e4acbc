"""Policies by name for a replay: the router's own, and the published ones it can be compared with.

`cluster` and the command line call it. `block-cost:32` is `block-cost` at scale 32.
"""

from penstock_router.baselines import BlockCost
from penstock_router.policies import POLICIES, Policy, policy_named

NAMES = (*POLICIES, "block-cost[:SCALE]")


def simulated_policy(name: str) -> Policy:
    """The policy of that name. Raises ValueError listing the allowed names."""
    plain, _, scale = name.partition(":")
    if plain == "block-cost":
        try:
            return BlockCost(float(scale or 1.0))
        except ValueError as error:
            raise ValueError(f"policy is {name!r}: {error}; allowed: block-cost:SCALE with a number from 0") from None
    if name not in POLICIES:
        raise ValueError(f"policy is {name!r}; allowed: {', '.join(NAMES)}")
    return policy_named(name)
