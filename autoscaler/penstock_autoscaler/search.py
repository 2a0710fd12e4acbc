"""The size at which one replica more is no longer worth it: a walk over sizes, each tried in a replay.

Pure but for the what-if it is given; `demand` calls it with a guess. A miss has the same price at all times, so what the goal allows is
missed where serving it would cost most; an attainment to be reached at every moment would buy the dearest requests first.
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
    """When a walk is over: what a replica must be worth."""

    worth_ratio: float
    """A replica must turn at least this share of what an average one serves from missing its targets to meeting them."""
    far_ratio: float = 0.5
    """Where more than this is missed every replica is welcome: one alone may not help yet."""
    here: dict[str, int] = {}
    """Sizes in force, by pool."""
    tolerance_ratio: float = 0.0
    """They are left only for a gain that is larger, or a loss that is smaller, by this share."""

    def far(self, seen: Attainment) -> bool:
        return _missed(seen) > self.far_ratio

    def hopeless(self, sizes: Sizes, seen: Attainment) -> bool:
        """Whether not even a replica that ends all misses would be worth it."""
        return _missed(seen) * sum(sizes.values()) < self.worth_ratio

    def grows(self, sizes: Sizes, seen: Attainment, tried: Attainment) -> bool:
        """Whether one replica more, with which it is as `tried`, is worth it."""
        slack = 1.0 + (self.tolerance_ratio if sizes == self.here else 0.0)
        return (_missed(seen) - _missed(tried)) * sum(sizes.values()) >= slack * self.worth_ratio

    def spares(self, sizes: Sizes, seen: Attainment, tried: Attainment) -> bool:
        """Whether one replica fewer, with which it is as `tried`, costs less than a replica is worth."""
        slack = 1.0 - (self.tolerance_ratio if sizes == self.here else 0.0)
        lost = (_missed(tried) - _missed(seen)) * (sum(sizes.values()) - 1)
        return not self.far(tried) and lost < slack * self.worth_ratio


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Where the walk ended."""

    sizes: dict[str, int]
    attainment_ratio: float | None
    """Predicted; None: not tried, for want of budget."""
    met: bool
    """False: more is wanted than is allowed, or it is not known whether more is wanted."""
    spare: int = 0
    """Replicas of these that are kept for a jump; the attainment predicted is without them."""
    missed_ratio: float | None = None
    """Where it is one more than replays say: the share of the latest requests that missed a target, which is why."""


Trial = Callable[[dict[str, int]], Attainment | None]


def fewest(guess: Sizes, pools: Sequence[Pool], bounds: Bounds, goal: Goal, trial: Trial) -> Found:
    """Walk from the guess: up while a replica more is worth it, then down while one fewer costs less than that."""
    sizes = bounds.within(guess)
    seen = trial(sizes)
    if seen is None:
        return Found(sizes=sizes, attainment_ratio=None, met=False)
    met, rose = True, False
    while not goal.hopeless(sizes, seen):
        larger, tried, met = _up(sizes, seen, pools, bounds, goal, trial)
        if larger is None:
            break
        if tried is None:
            return Found(sizes=larger, attainment_ratio=None, met=False)
        sizes, seen, rose = larger, tried, True
    if not rose or len(pools) > 1:  # the pool that was not short may have too many
        sizes, seen = _down(sizes, seen, pools, bounds, goal, trial)
    reached = seen.goodput_ratio
    return Found(sizes=sizes, attainment_ratio=1.0 if reached is None else reached, met=met)


def _up(
    sizes: dict[str, int], seen: Attainment, pools: Sequence[Pool], bounds: Bounds, goal: Goal, trial: Trial
) -> tuple[dict[str, int] | None, Attainment | None, bool]:
    """(a size larger by one that is worth it, how it fares, whether nothing forbade one); None: there is none."""
    allowed = [pool for pool in shortest(seen, pools) if bounds.allow({**sizes, pool.name: sizes[pool.name] + 1})]
    for pool in allowed:
        larger = {**sizes, pool.name: sizes[pool.name] + 1}
        tried = trial(larger)
        if tried is None:
            return (larger, None, False) if goal.far(seen) else (None, None, True)
        helps = _missed(tried) < _missed(seen) or pool is allowed[-1]
        if goal.grows(sizes, seen, tried) or (goal.far(seen) and helps):
            return larger, tried, True
    return None, None, len(allowed) == len(pools)


def _down(
    sizes: dict[str, int], seen: Attainment, pools: Sequence[Pool], bounds: Bounds, goal: Goal, trial: Trial
) -> tuple[dict[str, int], Attainment]:
    """One pool after the other, the dearest replicas first."""
    for pool in sorted(pools, key=lambda one: -one.accelerators):
        while True:
            smaller = {**sizes, pool.name: sizes[pool.name] - 1}
            tried = trial(smaller) if bounds.allow(smaller) else None
            if tried is None or not goal.spares(sizes, seen, tried):
                break
            sizes, seen = smaller, tried
    return sizes, seen


def shortest(seen: Attainment, pools: Sequence[Pool]) -> list[Pool]:
    """Pools in the order in which one more replica is likely to help: late first tokens want prefill, slow ones decode."""
    late, slow = seen.requests - seen.ttft_met, seen.requests - seen.itl_met
    first = Role.PREFILL if late >= slow else Role.DECODE
    return sorted(pools, key=lambda one: (one.role is not first, one.role is not Role.BOTH))


def _missed(seen: Attainment) -> float:
    return 1.0 - seen.goodput_ratio if seen.goodput_ratio is not None else 0.0
