"""Replicas that are kept ready for a jump of the rate, where starting them then would take too long.

Pure; `scaler` calls it with what the price of a replica asks for. A small fleet misses nearly all of a jump until others have started,
and the longer they take the more that is; so a replica or two may be worth more than what they serve day by day.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec
from penstock_core.slo import Slo

from penstock_autoscaler.demand import Mix, fluid
from penstock_autoscaler.observation import Pool
from penstock_autoscaler.search import Bounds, Found
from penstock_autoscaler.settings import ScalerSettings


def insured(found: Found, means: Mix, pools: Sequence[Pool], slo: Slo, bounds: Bounds, settings: ScalerSettings) -> Found:
    """Sizes that stand a jump to `jump_factor` times the rate, or as much of it as a small fleet does, and a few more where starts take
    minutes; `found` where they are quick.

    What it takes is counted from the load, not from `found`: that goes up and down by one with every sample, and would take the rest along.
    """
    start_s = max(pool.start_s for pool in pools)
    if start_s <= settings.jump_start_s:
        return found
    load = fluid(means, pools, slo)
    sizes = _fleet(found.sizes, load, bounds, settings)
    for _ in range(int((start_s - settings.jump_start_s) / settings.jump_spare_s)):
        sizes = _one_more(sizes, load, bounds, settings.jump_factor)
    return msgspec.structs.replace(found, sizes=sizes, spare=sum(sizes.values()) - sum(found.sizes.values()))


def _fleet(sizes: Mapping[str, int], load: Mapping[str, float], bounds: Bounds, settings: ScalerSettings) -> dict[str, int]:
    """With what as many as `jump_fleet` replicas stand, or as the bounds allow."""
    for most in range(settings.jump_fleet, 0, -1):
        stood = _stands(load, settings.jump_factor, most)
        larger = {name: max(size, stood[name]) for name, size in sizes.items()}
        if bounds.allow(larger):
            return larger
    return dict(sizes)


def _one_more(sizes: dict[str, int], load: Mapping[str, float], bounds: Bounds, factor: float) -> dict[str, int]:
    """Where the smallest jump is too much, unless all stand the whole one."""
    jumps = {name: sizes[name] / busy for name, busy in load.items() if busy > 0.0}
    name = min(jumps, key=lambda one: jumps[one], default=None)
    if name is None or jumps[name] >= factor:
        return sizes
    larger = {**sizes, name: sizes[name] + 1}
    return larger if bounds.allow(larger) else sizes


def _stands(load: Mapping[str, float], factor: float, most: int) -> dict[str, int]:
    """By pool, what the largest jump takes that is at most that factor and that `most` replicas stand."""
    while True:
        sizes = {name: math.ceil(factor * busy - 1e-9) for name, busy in load.items()}
        if sum(sizes.values()) <= most:
            return sizes
        factor = max((sizes[name] - 1) / busy for name, busy in load.items() if sizes[name])
