"""What the loop needs of the world, as Protocols: signals to read, replicas to look at and to change, a simulator to ask.

Implemented where the world is: signals and leases in kvindex' Redis, actuators for Kubernetes and for the local fleet, the what-if by the
simulator; the CLI wires them in. No decision here.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
from penstock_core.errors import PenstockError
from penstock_core.slo import Attainment, Slo
from penstock_core.traffic import Window

from penstock_autoscaler.decision import Decision
from penstock_autoscaler.observation import Observation, Pool, Replica, Target
from penstock_autoscaler.sample import Sample
from penstock_autoscaler.settings import ScalerSettings


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """What an actuator sees of one model."""

    target: Target
    pools: tuple[Pool, ...]
    replicas: tuple[Replica, ...]
    paused: str = ""
    """Why nothing may be changed now, in words; empty: it may."""
    overridden: Mapping[str, str] = {}
    """Pool → who else sets its size (an HPA, a person), in words."""


class ScaleFailed(PenstockError):
    """A fleet could not be looked at or changed, or took too long; the message says why. Try again with the next decision."""


class Actuator(Protocol):
    """One model's pools. Every call raises ScaleFailed where it cannot be done, and has a time-out of its own."""

    async def look(self, now_s: float) -> Fleet:
        """What is there. `now_s`: now, on the clock of the Windows; the replicas' times are given on that clock."""
        ...

    async def carry_out(self, decision: Decision) -> None:
        """Make what differs so: sizes, then switches, and late replicas replaced.

        Called for valid decisions only, and only by the holder of the lease."""
        ...

    async def show(self, decision: Decision) -> None:
        """Tell where users look (conditions, events, status). Called for every decision of the holder of the lease."""
        ...


class Signals(Protocol):
    """The model's Windows. Raises IndexUnavailable where the store is away."""

    async def clock(self) -> float:
        """Now, on the clock of the Windows, in seconds."""
        ...

    async def since(self, since_s: float, period_s: float) -> tuple[float, list[Window]]:
        """(now_s, all routers' traffic after since_s in successive intervals of about period_s, oldest first).

        Empty where not all of them have told of any moment after it. What nobody has told of lies between intervals, in none."""
        ...


class Store(Protocol):
    """Who of several autoscalers acts on a model, and what it remembers. Raises IndexUnavailable where the store is away."""

    async def hold(self, who: str, lease_s: float) -> bool:
        """Take or renew the right to scale; whether it is `who`'s for `lease_s` from now."""
        ...

    async def release(self, who: str) -> None: ...

    async def keep(self, who: str, memory: bytes, told: bytes, *, again: bool) -> bool:
        """Store both; `again`: the decision takes the place of the one before. False: `who` holds the right no more."""
        ...

    async def memory(self) -> bytes | None: ...

    async def told(self, most: int) -> list[bytes]:
        """The latest decisions, newest first."""
        ...


class Brain(Protocol):
    """Decides; `scaler.Scaler`. One thread at a time calls it."""

    settings: ScalerSettings
    """How cautious it is."""

    def step(self, seen: Observation) -> Decision:
        """What to have now. It learns all traffic in `seen`, each interval being handed in once. Up to seconds of CPU."""
        ...

    def saved(self) -> bytes:
        """What it remembers."""
        ...

    def restore(self, saved: bytes) -> None:
        """Go on from what another one saved. Raises ValueError for what it cannot read."""
        ...


class Answer(msgspec.Struct, frozen=True):
    """Of a replay."""

    attainment: Attainment | None
    """None: more CPU seconds than allowed were needed, or there is no replica that could serve."""
    spent_s: float
    """CPU seconds."""


class WhatIf(Protocol):
    """Replays traffic at another size. CPU-bound: whoever steps the brain gives it a thread or process of its own."""

    def replay(self, sizes: Mapping[str, int], pools: Sequence[Pool], asked: Sample, slo: Slo, budget_s: float) -> Answer:
        """How the requests would fare with so many ready replicas a pool, those at the start left out."""
        ...
