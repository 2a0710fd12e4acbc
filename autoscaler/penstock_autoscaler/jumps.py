"""Replicas that are kept ready for a jump of the rate, where starting them then would take too long.

Pure; `scaler` calls it with what the price of a replica asks for. A fleet that is too small for a jump misses nearly all of it until others
have started, one that is just large enough nearly nothing; so a replica or two may be worth more than what they serve day by day.
"""

import math
from collections.abc import Sequence

import msgspec
from penstock_core.slo import Slo

from penstock_autoscaler.demand import Mix, fluid
from penstock_autoscaler.observation import Pool
from penstock_autoscaler.search import Bounds, Found
from penstock_autoscaler.settings import ScalerSettings


def insured(found: Found, means: Mix, pools: Sequence[Pool], slo: Slo, bounds: Bounds, settings: ScalerSettings) -> Found:
    """Sizes that stand a jump to `jump_factor` times the rate until more are there; `found` where starts are quick or it takes too many.

    What it takes is counted from the load, not from `found`: that goes up and down by one with every sample, and would take the rest along.
    """
    if max(pool.start_s for pool in pools) <= settings.jump_start_s:
        return found
    load = fluid(means, pools, slo)
    jumped = fluid(msgspec.structs.replace(means, rate=means.rate * settings.jump_factor), pools, slo)
    sizes = {name: max(size, math.ceil(jumped[name])) for name, size in found.sizes.items()}
    spare = sum(sizes.values()) - sum(found.sizes.values())
    if not spare or sum(jumped.values()) - sum(load.values()) > settings.jump_replicas or not bounds.allow(sizes):
        return found
    return msgspec.structs.replace(found, sizes=sizes, spare=spare)
