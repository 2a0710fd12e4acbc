"""What the loop needs of the world, as Protocols: signals to read, replicas to look at and to change, a simulator to ask.

Implemented where the world is: signals and leases in kvindex' Redis, actuators for Kubernetes and for the local fleet, the what-if by the
simulator; the CLI wires them in. No decision here.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
from penstock_core.slo import Slo
from penstock_core.traffic import Window

from penstock_autoscaler.decision import Decision
from penstock_autoscaler.observation import Pool, Replica, Target


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
    """Replays traffic at another size. CPU-bound: callers give it a budget and a thread or process of its own."""

    def attainment(self, sizes: Mapping[str, int], pools: Sequence[Pool], traffic: Window, slo: Slo, budget_s: float) -> float | None:
        """Share 0..1 of requests that would meet both targets with so many ready replicas a pool; None: no budget left, or too few data."""
        ...
