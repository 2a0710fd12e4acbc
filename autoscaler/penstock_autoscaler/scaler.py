"""The autoscaler's brain: one object a model, one step a period, from an Observation to a Decision.

The loop (live) and the simulator call `step`; it reads no clock, does no I/O and remembers only what is in its Memory.
"""

import math

import msgspec
from penstock_core.traffic import joined

from penstock_autoscaler.decision import Decision, Reason
from penstock_autoscaler.demand import fluid, mix
from penstock_autoscaler.memory import Memory, Wanted, decode, encode
from penstock_autoscaler.observation import Observation, Pool
from penstock_autoscaler.ports import WhatIf
from penstock_autoscaler.settings import ScalerSettings


class Scaler:
    """State: the Memory. Without a what-if it sizes by the fluid bound alone."""

    def __init__(self, settings: ScalerSettings | None = None, what_if: WhatIf | None = None, memory: Memory | None = None) -> None:
        self._settings = settings or ScalerSettings()
        self._what_if = what_if
        self.memory = memory or Memory()

    def saved(self) -> bytes:
        """The Memory, for whoever goes on."""
        return encode(self.memory)

    def restore(self, kept: bytes) -> None:
        """Go on with what `saved` gave. Raises msgspec.DecodeError for anything else."""
        self.memory = decode(kept)

    def step(self, seen: Observation) -> Decision:
        """What to have now. Call it once a period, with the traffic since the last call."""
        here = {pool.name: pool.desired for pool in seen.pools}
        if seen.traffic is None:
            message = "No router has said what arrived: nothing is changed."
            return Decision(at_s=seen.now_s, desired=here, reason=Reason.NO_DATA, message=message, valid=False)
        self.memory.add(seen.traffic, self._settings)
        if seen.paused:
            return Decision(at_s=seen.now_s, desired=here, reason=Reason.PAUSED, message=f"Paused: {seen.paused}.")
        asked = mix(joined(self.memory.windows))
        needed = {name: math.ceil(replicas) for name, replicas in fluid(asked, seen.pools, seen.target.slo).items()}
        self._remember(seen.now_s, needed)
        desired = {pool.name: self._size(pool, needed[pool.name], seen) for pool in seen.pools}
        reason = Reason.STEADY
        if any(desired[name] != here[name] for name in here):
            reason = Reason.UP if any(desired[name] > here[name] for name in here) else Reason.DOWN
        words = ", ".join(f"{pool.name} {here[pool.name]} → {desired[pool.name]}" for pool in seen.pools)
        return Decision(
            at_s=seen.now_s,
            desired=desired,
            reason=reason,
            message=f"{asked.rate:.2f} requests/s: {words}.",
            facts=msgspec.structs.asdict(asked),
        )

    def _remember(self, now_s: float, needed: dict[str, int]) -> None:
        since_s = now_s - self._settings.stable_s
        self.memory.wanted = [*(one for one in self.memory.wanted if one.at_s > since_s), Wanted(now_s, needed)]

    def _size(self, pool: Pool, needed: int, seen: Observation) -> int:
        if pool.name in seen.overridden:
            return pool.desired
        if needed < pool.desired:
            needed = min(pool.desired, max(one.replicas.get(pool.name, pool.desired) for one in self.memory.wanted))
        return max(pool.min_replicas, min(pool.max_replicas, needed))
