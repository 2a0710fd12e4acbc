"""What the loop needs of the world, as Protocols: signals to read, replicas to look at and to change, a simulator to ask.

Implemented where the world is: signals and leases in kvindex' Redis, actuators for Kubernetes and for the local fleet, the what-if by the
simulator; the CLI wires them in. No decision here.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
from penstock_core.slo import Attainment, Slo
from penstock_core.traffic import Window

from penstock_autoscaler.decision import Decision
from penstock_autoscaler.observation import Pool, Replica, Target
from penstock_autoscaler.sample import Sample


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """What an actuator sees of one model."""

    target: Target
    pools: tuple[Pool, ...]
    replicas: tuple[Replica, ...]
    paused: str = ""
    """Why nothing may be changed now, in words; empty: it may."""
    overridden: Mapping[str, str] = {}
    """Pool → who else sets its size (an HPA, a person), in words."""


class Actuator(Protocol):
    """One model's pools. Every call raises ScaleFailed where it cannot be done, and has a time-out of its own."""

    async def look(self) -> Fleet: ...

    async def carry_out(self, decision: Decision) -> None:
        """Make what differs so (sizes, then switches), and show the decision where users look (conditions, events, status)."""
        ...


class Signals(Protocol):
    """The model's Windows. Raises IndexUnavailable where the store is away."""

    async def since(self, since_s: float) -> tuple[float, Window | None]:
        """(now_s, all routers' traffic since then joined); None where no router has published."""
        ...


class Lease(Protocol):
    """Who of several autoscalers acts."""

    async def hold(self) -> bool:
        """Take or renew it; whether it is ours now. An error counts as not."""
        ...


class WhatIf(Protocol):
    """Replays traffic at another size. CPU-bound: whoever steps the brain gives it a thread or process of its own."""

    def replay(self, sizes: Mapping[str, int], pools: Sequence[Pool], asked: Sample, slo: Slo, budget_s: float) -> Attainment | None:
        """How the requests would fare with so many ready replicas a pool, those at the start left out; None: more CPU seconds than
        `budget_s` were needed, or no pool has a replica that can serve."""
        ...
