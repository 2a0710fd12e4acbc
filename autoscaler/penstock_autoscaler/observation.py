"""What a decision is made from: the traffic since the last one, the replicas that are there, and what may be done with them.

`loop` gathers it (from Redis and an actuator), the simulator makes the same in virtual time, `decide` and its neighbours only read it.
Values only; times are seconds of the clock that the Windows use.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec
from penstock_core.endpoint import Role
from penstock_core.profile import EngineProfile
from penstock_core.profile_fit import PoolFit
from penstock_core.slo import Slo
from penstock_core.traffic import Window


class Phase(StrEnum):
    """Of a replica that is paid for."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    """It takes nothing new and leaves, or changes its role, when it is empty."""


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """How one replica's start went: seconds of each phase, in this order."""

    name: str
    """Another start has another name, the same replica's too."""
    schedule_s: float = 0.0
    """Until it had a machine."""
    pull_s: float = 0.0
    """Until its process was started: its image was there."""
    process_s: float = 0.0
    """Until its own code was loaded."""
    engine_s: float = 0.0
    """Until its engine had its model loaded and was warm."""
    rest_s: float = 0.0
    """Until it was seen to be ready."""

    @property
    def total_s(self) -> float:
        return self.schedule_s + self.pull_s + self.process_s + self.engine_s + self.rest_s


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One replica at the moment of the decision."""

    id: str
    pool: str
    role: Role
    phase: Phase
    asked_s: float
    """When it was asked for; what it costs counts from then on."""
    ready_s: float | None = None
    """When it became ready; None while it starts."""
    start: Start | None = None
    """None while it starts, and where that is not known (its container was started anew since)."""
    running: int = 0
    waiting: int = 0
    prefill_tokens: int = 0
    """Prompt tokens still to compute."""
    kv_used_tokens: int = 0
    kv_tokens: int = 0


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas of one role and setting, and how many of them there may be."""

    name: str
    role: Role
    desired: int
    """As last asked for, by whomever."""
    min_replicas: int
    max_replicas: int
    profile: EngineProfile
    """Declared, or corrected as `fit` says: the best that is known of how fast one replica computes."""
    fit: PoolFit | None = None
    """What `profile` was corrected by; None: it is as declared."""
    start_s: float
    """From asking to ready: measured where any replica has started, else the profile's."""
    start: Start | None = None
    """Its phases where it was measured: the median of each."""
    accelerators: int = 1
    """Of one replica: what it costs a second."""
    can_switch: bool = False
    """Whether its engine changes its role in place, after a drain."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas:
            raise ValueError(f"pool {self.name}: min_replicas is {self.min_replicas}; allowed: 0..{self.max_replicas}, its max_replicas")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's owner asks for."""

    slo: Slo
    attainment_ratio: float = 0.95
    """Share of requests that should meet both targets."""
    most_accelerators: int | None = None
    """Budget over all pools of the model; None: only the pools' bounds hold."""

    def __post_init__(self) -> None:
        if not 0.0 < self.attainment_ratio < 1.0:
            raise ValueError(f"attainment_ratio is {self.attainment_ratio!r}; allowed: more than 0 and less than 1")


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One model at one moment."""

    now_s: float
    target: Target
    pools: tuple[Pool, ...]
    replicas: tuple[Replica, ...]
    traffic: Window | None
    """The interval to decide on: the latest since the last observation, all routers together; None: nothing is known of any."""
    earlier: tuple[Window, ...] = ()
    """The intervals between the last observation and `traffic`, oldest first: where longer than a period has passed since, nothing was
    decided on them, and they are no part of the present."""
    paused: str = ""
    """Why nothing may be changed now, in words; empty: it may."""
    overridden: Mapping[str, str] = {}
    """Pool → who else sets its size, in words: it is sized no more, and counted as it is."""
