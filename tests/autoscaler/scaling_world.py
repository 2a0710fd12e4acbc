"""A made-up clock, a made-up fleet and even traffic: what the autoscaler's stories are told in.

Minutes pass by arithmetic. Replicas asked for are ready after `start_s`, ones that leave are gone at once.
"""

from collections.abc import Mapping

import msgspec
import numpy as np
from penstock_autoscaler.decision import Decision
from penstock_autoscaler.observation import Observation, Phase, Pool, Replica, Target
from penstock_autoscaler.ports import WhatIf
from penstock_autoscaler.scaler import Scaler
from penstock_autoscaler.settings import ScalerSettings
from penstock_core.endpoint import Role
from penstock_core.profile import profile_named
from penstock_core.slo import Slo
from penstock_core.traffic import Ended, Window

PROFILE = profile_named("qwen3-32b-h100x2")
"""One replica carries about 1.1 requests/s of 4,000 prompt and 1,000 answer tokens."""
PERIOD_S = 15.0


def pool(name: str = "both", role: Role = Role.BOTH, desired: int = 1, **changed: object) -> Pool:
    """Of 1 to 12 replicas that start in 100 s."""
    made = Pool(name=name, role=role, desired=desired, min_replicas=1, max_replicas=12, profile=PROFILE, start_s=100.0)
    return msgspec.structs.replace(made, **changed)


class World:
    """State: the time, the replicas, and what was decided so far."""

    def __init__(self, *pools: Pool, what_if: WhatIf | None = None, target: Target | None = None, **settings: float) -> None:
        self.now_s = 0.0
        self.pools = {one.name: one for one in pools or (pool(),)}
        self.target = target or Target(slo=Slo(3.0, 0.1), attainment_ratio=0.95)
        self.scaler = Scaler(ScalerSettings(period_s=PERIOD_S, **settings), what_if)
        self.replicas: list[Replica] = []
        self.decisions: list[Decision] = []
        self.stuck = False
        self.prompt_tokens, self.output_tokens = 4_000, 1_000
        self._named = 0
        for one in self.pools.values():
            self._start(one, one.desired, ready_s=0.0)

    def minutes(
        self,
        minutes: float,
        rate: float | None = 0.0,
        *,
        missed_ratio: float = 0.0,
        paused: str = "",
        overridden: Mapping[str, str] | None = None,
        waiting: int = 0,
    ) -> list[Decision]:
        """So long at that rate, None: nobody publishes; gives the decisions of this time, all carried out."""
        made = []
        for _ in range(round(minutes * 60.0 / PERIOD_S)):
            self.now_s += PERIOD_S
            self.replicas = [self._grown(one) for one in self.replicas]
            seen = Observation(
                now_s=self.now_s,
                target=self.target,
                pools=tuple(self.pools.values()),
                replicas=tuple(self.replicas),
                traffic=None if rate is None else self._traffic(rate, missed_ratio, waiting),
                paused=paused,
                overridden=overridden or {},
            )
            made.append(self.scaler.step(seen))
            self._carry_out(made[-1])
        self.decisions += made
        return made

    def size(self, name: str = "both") -> int:
        return self.pools[name].desired

    def _traffic(self, rate: float, missed_ratio: float, waiting: int) -> Window:
        """Of even arrivals, each ended at once."""
        first = int(np.ceil((self.now_s - PERIOD_S) * rate))
        arrival_s = np.arange(first, np.ceil(self.now_s * rate)) / rate if rate else np.zeros(0)
        count = len(arrival_s)
        late = np.arange(count) < missed_ratio * count
        ended = Ended(
            arrival_s=arrival_s,
            prompt_tokens=np.full(count, self.prompt_tokens),
            hit_tokens=np.zeros(count, np.int64),
            output_tokens=np.full(count, self.output_tokens),
            ttft_s=np.where(late, 30.0, 0.5),
            tpot_s=np.full(count, 0.03),
            ok=np.full(count, True),
        )
        return Window(
            since_s=self.now_s - PERIOD_S,
            until_s=self.now_s,
            arrival_s=arrival_s,
            prompt_tokens=ended.prompt_tokens,
            ended=ended,
            arrivals=count,
            endings=count,
            waiting=waiting,
        )

    def _grown(self, one: Replica) -> Replica:
        start_s = self.pools[one.pool].start_s
        if one.phase is Phase.STARTING and not self.stuck and self.now_s >= one.asked_s + start_s:
            return msgspec.structs.replace(one, phase=Phase.READY, ready_s=one.asked_s + start_s)
        return one

    def _carry_out(self, decision: Decision) -> None:
        self.replicas = [one for one in self.replicas if one.id not in decision.late]
        for switch in decision.switches:
            self.replicas = [
                msgspec.structs.replace(one, pool=switch.pool, role=switch.role) if one.id == switch.replica else one
                for one in self.replicas
            ]
        for name, desired in decision.desired.items():
            mine = [one for one in self.replicas if one.pool == name]
            self._start(self.pools[name], desired - len(mine))
            gone = {one.id for one in mine[desired:]}
            self.replicas = [one for one in self.replicas if one.id not in gone]
            self.pools[name] = msgspec.structs.replace(self.pools[name], desired=desired)

    def _start(self, of: Pool, many: int, ready_s: float | None = None) -> None:
        for _ in range(many):
            self._named += 1
            phase = Phase.STARTING if ready_s is None else Phase.READY
            made = Replica(id=f"{of.name}-{self._named}", pool=of.name, role=of.role, phase=phase, asked_s=self.now_s, ready_s=ready_s)
            self.replicas.append(made)
