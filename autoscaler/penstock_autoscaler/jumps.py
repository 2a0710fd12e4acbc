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
from penstock_autoscaler.trend import Count

_LOOK_S = 60.0
_RISEN, _SURE = 1.5, 4.0
"""A jump is a rise by this factor, and by so many standard deviations of a Poisson process."""


def jumped(counts: Sequence[Count], within_s: float) -> bool:
    """Whether the rate of the latest minute is far above that of the minute that ended `within_s` before it did; within_s: 60 or more."""
    if not counts:
        return False
    until_s = counts[-1].until_s
    lately, lately_s = _between(counts, until_s - _LOOK_S, until_s)
    before, before_s = _between(counts, until_s - within_s - _LOOK_S, until_s - within_s)
    if before_s <= 0.0:
        return False
    usual = before * lately_s / before_s
    return lately > _RISEN * usual and lately - usual > _SURE * math.sqrt(lately + usual)


def _between(counts: Sequence[Count], since_s: float, until_s: float) -> tuple[int, float]:
    """(arrivals, seconds) of the intervals that end there."""
    some = [one for one in counts if since_s < one.until_s <= until_s]
    return sum(one.arrivals for one in some), sum(one.length_s for one in some)


def insured(found: Found, means: Mix, pools: Sequence[Pool], slo: Slo, bounds: Bounds, settings: ScalerSettings, quiet_s: float) -> Found:
    """Sizes that stand a jump to `jump_factor` times the rate, or as much of it as a small fleet does, and a few more where starts take
    minutes; `found` where they are quick, or where no jump has been seen for long: `quiet_s`.

    What it takes is counted from the load, not from `found`: that goes up and down by one with every sample, and would take the rest along.
    """
    start_s = max(pool.start_s for pool in pools)
    if start_s <= settings.jump_start_s or quiet_s > settings.jump_memory_s:
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
