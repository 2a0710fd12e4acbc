"""The fewest accelerators whose predicted attainment reaches a goal: a walk over sizes, each tried in a replay.

Pure but for the what-if it is given; `demand` calls it with a guess. What earlier decisions tried answers where it can: what met the goal
at a higher rate, or missed it at a lower one, a moment ago.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec
from penstock_core.endpoint import Role
from penstock_core.slo import Attainment

from penstock_autoscaler.observation import Pool

Sizes = Mapping[str, int]


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What the walk may do."""

    least: dict[str, int]
    most: dict[str, int]
    accelerators: dict[str, int]
    """Of one replica, by pool."""
    budget: int | None = None

    def within(self, sizes: Sizes) -> dict[str, int]:
        """The nearest sizes by pool that each pool may have; over the budget, the largest pools give way first."""
        inside = {name: max(self.least[name], min(self.most[name], size)) for name, size in sizes.items()}
        while self.budget is not None and self.cost(inside) > self.budget:
            spare = [name for name, size in inside.items() if size > self.least[name] and self.accelerators[name]]
            if not spare:
                break
            inside[max(spare, key=lambda name: inside[name])] -= 1
        return inside

    def cost(self, sizes: Sizes) -> int:
        return sum(self.accelerators[name] * size for name, size in sizes.items())

    def allow(self, sizes: Sizes) -> bool:
        fits = all(self.least[name] <= size <= self.most[name] for name, size in sizes.items())
        return fits and (self.budget is None or self.cost(sizes) <= self.budget)


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """When a walk is over."""

    ratio: float
    """Attainment to reach."""
    worth_ratio: float = 0.0
    """Near it, a step up must gain at least so much attainment for each part of the traffic that one replica serves."""
    here: dict[str, int] = {}
    """Sizes in force, by pool."""
    tolerance_ratio: float = 0.0
    """They are left when they miss by more than this share of the allowed misses."""

    def met(self, sizes: Sizes, seen: Attainment) -> bool:
        slack = 1.0 + (self.tolerance_ratio if sizes == self.here else 0.0)
        return 1.0 - _ratio(seen) <= slack * (1.0 - self.ratio)

    def worth(self, before: Attainment, after: Attainment, replicas: int) -> bool:
        """Far from the goal every step is."""
        near = 1.0 - _ratio(before) <= 3.0 * (1.0 - self.ratio)
        return not near or (_ratio(after) - _ratio(before)) * replicas >= self.worth_ratio


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Where the walk ended."""

    sizes: dict[str, int]
    attainment_ratio: float | None
    """Predicted; None: not tried, for want of budget."""
    met: bool
    """False: no size that is allowed reaches the goal, or it is not known to."""
    useless: bool = False
    """Not met, and more replicas would hardly help: what is missed would be missed on an idle replica."""


Trial = Callable[[dict[str, int]], Attainment | None]


def fewest(guess: Sizes, pools: Sequence[Pool], bounds: Bounds, goal: Goal, trial: Trial) -> Found:
    """Walk from the guess: up until the goal is met, then down while it stays met."""
    sizes = bounds.within(guess)
    seen = trial(sizes)
    if seen is None:
        return Found(sizes=sizes, attainment_ratio=None, met=False)
    if not goal.met(sizes, seen):
        found = _up(sizes, seen, pools, bounds, goal, trial)
        reached = trial(found.sizes) if found.met and len(pools) > 1 else None
        if reached is None:
            return found
        sizes, seen = found.sizes, reached  # the pool that was not short may have too many
    return _down(sizes, seen, pools, bounds, goal, trial)


def _up(sizes: dict[str, int], seen: Attainment, pools: Sequence[Pool], bounds: Bounds, goal: Goal, trial: Trial) -> Found:
    while not goal.met(sizes, seen):
        order = shortest(seen, pools)
        for pool in order:
            larger = {**sizes, pool.name: sizes[pool.name] + 1}
            if not bounds.allow(larger):
                continue
            tried = trial(larger)
            if tried is None:
                return Found(sizes=larger, attainment_ratio=None, met=False)
            if _ratio(tried) > _ratio(seen) or pool is order[-1]:
                if not goal.met(larger, tried) and not goal.worth(seen, tried, sum(sizes.values())):
                    return Found(sizes=sizes, attainment_ratio=_ratio(seen), met=False, useless=True)
                sizes, seen = larger, tried
                break
        else:
            return Found(sizes=sizes, attainment_ratio=_ratio(seen), met=False)
    return Found(sizes=sizes, attainment_ratio=_ratio(seen), met=True)


def _down(sizes: dict[str, int], seen: Attainment, pools: Sequence[Pool], bounds: Bounds, goal: Goal, trial: Trial) -> Found:
    """One pool after the other, the dearest replicas first."""
    for pool in sorted(pools, key=lambda one: -one.accelerators):
        while True:
            smaller = {**sizes, pool.name: sizes[pool.name] - 1}
            tried = trial(smaller) if bounds.allow(smaller) else None
            if tried is None or not goal.met(smaller, tried):
                break
            sizes, seen = smaller, tried
    return Found(sizes=sizes, attainment_ratio=_ratio(seen), met=True)


def shortest(seen: Attainment, pools: Sequence[Pool]) -> list[Pool]:
    """Pools in the order in which one more replica is likely to help: late first tokens want prefill, slow ones decode."""
    late, slow = seen.requests - seen.ttft_met, seen.requests - seen.itl_met
    first = Role.PREFILL if late >= slow else Role.DECODE
    return sorted(pools, key=lambda one: (one.role is not first, one.role is not Role.BOTH))


def _ratio(seen: Attainment) -> float:
    return seen.goodput_ratio if seen.goodput_ratio is not None else 1.0
