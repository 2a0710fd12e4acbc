"""The baselines by name; `block-cost:32` is `block-cost` at scale 32.

`policies.policy_named` calls it for the names that it does not know itself.
"""

from penstock_router.baselines.block_cost import MOST_SCALE, BlockCost
from penstock_router.baselines.chance import PowerOfTwo, RandomChoice
from penstock_router.baselines.conductor import Conductor
from penstock_router.baselines.lmetric import LMetric
from penstock_router.policies import Policy

_PLAIN = (RandomChoice, PowerOfTwo, LMetric, Conductor)
BASELINES = (*(one.name for one in _PLAIN), "block-cost")


def baseline_named(name: str) -> Policy | None:
    """The baseline of that name, None for an unknown one. Raises ValueError for a scale that is not allowed."""
    for plain in _PLAIN:
        if plain.name == name:
            policy: Policy = plain()
            return policy
    kind, colon, scale = name.partition(":")
    if kind != "block-cost":
        return None
    try:
        return BlockCost(float(scale)) if colon else BlockCost()
    except ValueError:
        raise ValueError(f"policy is {name!r}; allowed: block-cost:SCALE with a SCALE of 0..{MOST_SCALE:g}") from None
