"""What to add and what to retire in the pools of one ModelService, so that no role ever lacks a generation that serves.

Pure: sizes, gangs and loads in, steps out; `plan` turns the steps into writes. While the new generation has not served in every
role yet it is one replica a pool, and the old one is kept whole (replaced where it is lost, if its template is known). After
that the pools move alternately within maxSurge and maxUnavailable. Draining replicas count as surge, never as serving.
"""

from collections.abc import Mapping, Sequence

import msgspec

from penstock_operator import names
from penstock_operator.gangs import Gang


class PoolView(msgspec.Struct, frozen=True, kw_only=True):
    """One pool: what is wanted and what is there. `stable` is the template that served last, empty if none or if it is not known."""

    name: str
    desired: int
    current: str
    stable: str
    gangs: tuple[Gang, ...]

    @property
    def staying(self) -> tuple[Gang, ...]:
        return tuple(gang for gang in self.gangs if gang.stays)

    @property
    def new(self) -> tuple[Gang, ...]:
        return tuple(gang for gang in self.staying if gang.template_hash == self.current)

    @property
    def old(self) -> tuple[Gang, ...]:
        return tuple(gang for gang in self.staying if gang.template_hash != self.current)

    @property
    def serving(self) -> int:
        return sum(gang.ready for gang in self.staying)


class Load(msgspec.Struct, frozen=True):
    """What a candidate for retiring does at the moment."""

    running: int
    kv_tokens: int


class Limits(msgspec.Struct, frozen=True):
    """Of the rollout. `halted`: paused, or past its progress deadline."""

    max_surge: int
    max_unavailable: int
    halted: bool = False


class Steps(msgspec.Struct, frozen=True):
    """For one pool: replicas to add (template hash each), gangs to retire with the reason, and gangs whose load must be asked first."""

    add: tuple[str, ...] = ()
    retire: tuple[tuple[Gang, str], ...] = ()
    ask: tuple[Gang, ...] = ()


SCALE_IN, ROLLOUT = "ScaleIn", "Rollout"
NEVER_SERVED = "NeverServed"

Loads = Mapping[str, Load | None]
"""By the leader's uid; None: asked, and no answer."""


def rolling(pools: Sequence[PoolView]) -> bool:
    """Whether another generation is there, leaving replicas included, or ought to be until the new one serves."""
    if any(gang.template_hash != pool.current for pool in pools for gang in pool.gangs):
        return True
    return not proven(pools) and any(pool.stable and pool.stable != pool.current for pool in pools)


def proven(pools: Sequence[PoolView]) -> bool:
    """Whether the new generation serves in every role."""
    return all(pool.desired == 0 or any(gang.ready for gang in pool.new) for pool in pools)


def steps(pools: Sequence[PoolView], limits: Limits, loads: Loads) -> dict[str, Steps]:
    """What to do now, by pool. Doing it and asking again converges; nothing to do is an empty Steps."""
    if not rolling(pools):
        return {pool.name: _scale(pool, loads) for pool in pools}
    if limits.halted:
        return {pool.name: _hold(pool, loads, proven(pools)) for pool in pools}
    if not proven(pools):
        return {pool.name: _introduce(pool, limits, loads) for pool in pools}
    foremost = max(_share_of_old(pool) for pool in pools)
    return {pool.name: _replace(pool, limits, loads, may_retire=_share_of_old(pool) >= foremost) for pool in pools}


def _scale(pool: PoolView, loads: Loads) -> Steps:
    surplus = len(pool.new) - pool.desired
    if surplus < 0:
        return Steps(add=(pool.current,) * -surplus)
    return _retire(pool.new, surplus, SCALE_IN, loads)


def _hold(pool: PoolView, loads: Loads, new_serves: bool) -> Steps:
    """Scaling and repair go on, with the generation that serves; nothing is replaced."""
    template = pool.current if new_serves or not pool.stable else pool.stable
    unproven = () if new_serves else tuple(gang for gang in pool.new if not gang.ready)
    counted = tuple(gang for gang in pool.staying if gang not in unproven)
    surplus = len(counted) - pool.desired
    if surplus < 0:
        return Steps(add=(template,) * -surplus)
    return _retire(counted, surplus, SCALE_IN, loads)


def _introduce(pool: PoolView, limits: Limits, loads: Loads) -> Steps:
    """The old generation whole, and one replica of the new."""
    room = pool.desired + limits.max_surge - len(pool.gangs)
    old_goal = pool.desired if limits.max_surge > 0 else max(0, pool.desired - max(1, limits.max_unavailable))
    add: list[str] = []
    if pool.stable and pool.stable != pool.current:
        add += [pool.stable] * max(0, old_goal - len(pool.old))
    elif pool.stable or not pool.old:  # nothing else is to be trusted more than the current template
        add += [pool.current] * max(0, pool.desired - len(pool.new))
    if not pool.new and pool.desired > 0 and pool.current not in add and room - len(add) > 0:
        add.append(pool.current)
    useless = tuple(gang for gang in pool.old if not gang.ready and gang.template_hash != pool.stable)
    surplus = len(pool.old) - old_goal - len(useless)
    leaving = _retire(tuple(gang for gang in pool.old if gang not in useless), max(0, surplus), SCALE_IN, loads)
    extra = _retire(pool.new, max(0, len(pool.new) - pool.desired), SCALE_IN, loads)
    return Steps(
        add=tuple(add),
        retire=(*((gang, NEVER_SERVED) for gang in useless), *leaving.retire, *extra.retire),
        ask=(*leaving.ask, *extra.ask),
    )


def _replace(pool: PoolView, limits: Limits, loads: Loads, may_retire: bool) -> Steps:
    """New ones in as far as the surge allows, old ones out as far as enough serve, one old replica at a time."""
    room = pool.desired + limits.max_surge - len(pool.gangs)
    add = (pool.current,) * max(0, min(pool.desired - len(pool.new), room))
    idle = tuple(gang for gang in pool.old if not gang.ready)
    serving_old = tuple(gang for gang in pool.old if gang.ready)
    retire = [(gang, ROLLOUT) for gang in idle]
    ask: tuple[Gang, ...] = ()
    spare = pool.serving - (pool.desired - limits.max_unavailable)
    if serving_old and spare > 0 and (may_retire or len(pool.staying) > pool.desired + limits.max_surge):
        leaving = _retire(serving_old, 1, ROLLOUT, loads)
        retire += leaving.retire
        ask += leaving.ask
    extra = _retire(pool.new, max(0, len(pool.new) - pool.desired), SCALE_IN, loads)
    return Steps(add=add, retire=(*retire, *extra.retire), ask=(*ask, *extra.ask))


def _share_of_old(pool: PoolView) -> float:
    return sum(gang.ready for gang in pool.old) / max(1, pool.desired)


def _retire(candidates: Sequence[Gang], count: int, reason: str, loads: Loads) -> Steps:
    """The `count` that are missed least: not ready first, then fewest running streams, then least KV, then the youngest."""
    if count <= 0:
        return Steps()
    idle = sum(not gang.ready for gang in candidates)
    ready = [gang for gang in candidates if gang.ready]
    if idle < count < len(candidates):
        unknown = tuple(gang for gang in ready if _uid(gang) not in loads)
        if unknown:
            return Steps(ask=unknown)

    def missed(gang: Gang) -> tuple[bool, int, int, float, str]:
        load = loads.get(_uid(gang)) or Load(1 << 30, 1 << 60)  # no answer: the last to be chosen
        created = max(pod.created for pod in gang.pods)
        return (gang.ready, load.running, load.kv_tokens, -created, gang.replica)

    return Steps(retire=tuple((gang, reason) for gang in sorted(candidates, key=missed)[:count]))


def _uid(gang: Gang) -> str:
    return gang.leader.uid if gang.leader else ""


def free_ids(pool: PoolView, added: Sequence[str], taken: set[str]) -> tuple[tuple[str, str], ...]:
    """A (replica id, template hash) for each added replica: the first of its generation that no Pod, leaving ones included, holds."""
    found = []
    held = {gang.replica for gang in pool.gangs} | taken
    for template_hash in added:
        number = 0
        while (replica := names.replica_id(template_hash, number)) in held:
            number += 1
        held.add(replica)
        found.append((replica, template_hash))
    return tuple(found)
