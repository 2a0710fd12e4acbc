"""The baselines by name. `policies.policy_named` asks it for the names that it does not know itself."""

from penstock_router.baselines.block_cost import BlockCost
from penstock_router.baselines.chance import PowerOfTwo, RandomChoice
from penstock_router.baselines.conductor import Conductor
from penstock_router.baselines.lmetric import LMetric
from penstock_router.policies import Policy

_PLAIN = (RandomChoice, PowerOfTwo, LMetric, Conductor)


def baseline_named(name: str, scale: float | None = None) -> Policy:
    """The baseline of that name. `scale` is block-cost's; None: its default. Raises KeyError for a name that is none."""
    if name == "block-cost":
        return BlockCost() if scale is None else BlockCost(scale)
    makers = {plain.name: plain for plain in _PLAIN}
    policy: Policy = makers[name]()
    return policy
