"""From what the traffic asks for to what shall be: up at once, down only when it pays, within bounds, explained.

Pure; `scaler` calls it with sizes that `demand` found.
"""

from collections.abc import Mapping, Sequence

import msgspec

from penstock_autoscaler.decision import Reason
from penstock_autoscaler.memory import Wanted
from penstock_autoscaler.observation import Observation, Phase, Pool
from penstock_autoscaler.search import Bounds
from penstock_autoscaler.settings import ScalerSettings


class Resized(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes by pool, and why."""

    desired: dict[str, int]
    reason: Reason
    smaller: dict[str, int]
    """What would do at the moment, where that is less than what is desired."""


def bounds_of(seen: Observation, busy: bool) -> Bounds:
    """What sizes are allowed; a pool set by somebody else is as it is, one of a model with traffic has at least one replica."""
    least, most = {}, {}
    for pool in seen.pools:
        fixed = pool.name in seen.overridden
        least[pool.name] = pool.desired if fixed else min(pool.max_replicas, max(pool.min_replicas, 1 if busy else 0))
        most[pool.name] = pool.desired if fixed else pool.max_replicas
    accelerators = {pool.name: pool.accelerators for pool in seen.pools}
    return Bounds(least=least, most=most, accelerators=accelerators, budget=seen.target.most_accelerators)


def late(seen: Observation, settings: ScalerSettings) -> tuple[str, ...]:
    """Replicas that should have been ready long ago."""
    patience = {pool.name: settings.late_factor * max(pool.start_s, settings.period_s) for pool in seen.pools}
    return tuple(
        one.id
        for one in seen.replicas
        if one.phase is Phase.STARTING and one.pool in patience and seen.now_s - one.asked_s > patience[one.pool]
    )


def hold_s(pool: Pool, settings: ScalerSettings) -> float:
    """How long a smaller size must have done: what giving a replica up saves grows with the time it was not needed, what getting it back
    costs is its start-up time. The longer it was idle the longer it is likely to stay so."""
    return max(settings.stable_s, settings.flap_cost * pool.start_s)


def last_hold_s(pool: Pool, settings: ScalerSettings) -> float:
    """The same for the last replica too many."""
    factor = settings.quick_last_factor if pool.start_s <= settings.jump_start_s else settings.last_factor
    return max(1.0, factor) * hold_s(pool, settings)


def resize(
    pools: Sequence[Pool],
    needed: Mapping[str, int],
    met: bool,
    wanted: Sequence[Wanted],
    now_s: float,
    settings: ScalerSettings,
    bounds: Bounds,
) -> Resized:
    """`needed` is for the traffic expected, `wanted` what each decision of the latest time would have kept, this one's included."""
    desired, smaller = {}, {}
    waiting = False
    for pool in pools:
        name, here = pool.name, pool.desired
        would_do = wanted[-1].replicas.get(name, here) if wanted else here
        enough = _most(wanted, name, here, now_s - hold_s(pool, settings), settings) + 1
        last = _most(wanted, name, here, now_s - last_hold_s(pool, settings), settings)
        desired[name] = needed[name] if needed[name] > here else min(here, enough, last)
        if desired[name] == here > would_do:
            waiting, smaller[name] = True, would_do
    inside = bounds.within(desired)
    if bounds.cost(inside) < bounds.cost(desired):  # what is only held gives way before what is needed
        inside = bounds.within({name: min(size, max(needed[name], bounds.least[name])) for name, size in desired.items()})
    limited = any(inside[name] < needed[name] for name in inside)
    return Resized(desired=inside, reason=_reason(pools, inside, waiting, limited or not met), smaller=smaller)


def _most(wanted: Sequence[Wanted], name: str, here: int, since_s: float, settings: ScalerSettings) -> int:
    """The largest size that any decision since then would have kept; what is there, where they do not go back so far."""
    if not wanted or wanted[0].at_s > since_s + settings.period_s:
        return here
    return max(one.replicas.get(name, here) for one in wanted if one.at_s > since_s)


def _reason(pools: Sequence[Pool], desired: Mapping[str, int], waiting: bool, short: bool) -> Reason:
    steps = [desired[pool.name] - pool.desired for pool in pools]
    if max(steps, default=0) > 0:
        return Reason.UP
    if short:
        return Reason.LIMITED
    if min(steps, default=0) < 0:
        return Reason.DOWN
    return Reason.WAITING if waiting else Reason.STEADY
