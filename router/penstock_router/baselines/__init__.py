"""Published policies of other systems, under the same Protocol: to compare with, and for users who want them.

One module a policy; `policies.policy_named` asks `baseline_named`. They read the same beliefs as `target-misses`; nothing
else in the router knows of them, and none of them knows of another.
"""

from penstock_router.baselines.block_cost import BlockCost
from penstock_router.baselines.chance import PowerOfTwo, RandomChoice
from penstock_router.baselines.conductor import Conductor
from penstock_router.baselines.lmetric import LMetric
from penstock_router.baselines.named import baseline_named

__all__ = ["BlockCost", "Conductor", "LMetric", "PowerOfTwo", "RandomChoice", "baseline_named"]
