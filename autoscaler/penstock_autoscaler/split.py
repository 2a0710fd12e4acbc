"""Which replicas leave a pool, and which change their role instead of others being started.

Pure. `scaler` asks for switches, actuators that choose victims themselves for the order of leaving.
"""

from collections.abc import Mapping, Sequence

from penstock_core.endpoint import Role

from penstock_autoscaler.decision import RoleSwitch
from penstock_autoscaler.observation import Phase, Pool, Replica


def least_to_lose(one: Replica) -> tuple[bool, int, int, float]:
    """Order in which replicas of one pool leave: those that start, the newest first, then those with the fewest streams and least KV."""
    return (one.phase is not Phase.STARTING, one.running + one.waiting, one.kv_used_tokens, -one.asked_s)


def switches(
    here: Mapping[str, int],
    wanted: Mapping[str, int],
    spare: Mapping[str, int],
    pools: Sequence[Pool],
    replicas: Sequence[Replica],
    answer_s: float,
) -> tuple[RoleSwitch, ...]:
    """Spare replicas of one pool for what another one is short of, where that is faster than a start.

    `spare`: replicas by pool that are not needed at the moment. A decode replica first ends its answers, which take `answer_s`.
    """
    found: list[RoleSwitch] = []
    left = dict(spare)
    for short in sorted(pools, key=lambda one: here[one.name] - wanted[one.name]):
        missing = wanted[short.name] - here[short.name]
        for giver in pools:
            if giver.role is short.role or not (giver.can_switch and short.can_switch):
                continue
            if (answer_s if giver.role is not Role.PREFILL else 0.0) >= short.start_s:
                continue
            ready = [one for one in replicas if one.pool == giver.name and one.phase is Phase.READY]
            taken = {one.replica for one in found}
            leaving = sorted((one for one in ready if one.id not in taken), key=least_to_lose)
            many = max(0, min(missing, left.get(giver.name, 0), len(leaving)))
            found += [RoleSwitch(one.id, short.name, short.role) for one in leaving[:many]]
            left[giver.name] = left.get(giver.name, 0) - many
            missing -= many
    return tuple(found)
