"""A scaler under watch: what its fleet was at each tick, and the faults that a `scaling` benchmark puts in its way.

`scaling_runs` wraps the Controller that is judged in a Watched. A factory is known by name here or as `module:function`; it is called with
the Run and gives a Controller. What a scaler decides, and why, is its own business.
"""

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import msgspec
from penstock_autoscaler.observation import Phase
from penstock_core.endpoint import Role
from penstock_simulator.changes import Change, Controller, Start, View

Factory = Callable[[Any], Controller]
"""Takes the Run: its scene, size to begin with, start_s, goal_ratio, declared_speed, faults.lost_s."""

FACTORIES = {"naive": "benchmarks.scaling_naive:make", "penstock": "benchmarks.scaling_penstock:make"}


def factory_named(name: str) -> Factory:
    """Raises ValueError for a name that is none of FACTORIES and no `module:function`."""
    module, colon, function = FACTORIES.get(name, name).partition(":")
    if not colon:
        raise ValueError(f"scaler is {name!r}; allowed: {', '.join(FACTORIES)}, or module:function")
    made: Factory = getattr(import_module(module), function)
    return made


class Faults(msgspec.Struct, frozen=True):
    """What goes wrong in a run."""

    lost_s: tuple[float, float] | None = None
    """No router publishes anything from the first to the second; the scaler's factory has to see to it."""
    stuck_starts: tuple[int, ...] = ()
    """Numbers of the starts, from 0 on, that never become ready."""


class Moment(msgspec.Struct, frozen=True):
    """The fleet at a tick: replicas by role value."""

    at_s: float
    starting: dict[str, int]
    ready: dict[str, int]
    draining: dict[str, int]

    def wanted(self, role: Role) -> int:
        return self.starting.get(role.value, 0) + self.ready.get(role.value, 0)

    @property
    def paid(self) -> int:
        return sum(sum(part.values()) for part in (self.starting, self.ready, self.draining))


class Watched:
    """State: the moments so far, and how many starts there were. Keeps Controller, hands everything on."""

    def __init__(self, inner: Controller, faults: Faults) -> None:
        self._inner, self._faults = inner, faults
        self._starts = 0
        self.moments: list[Moment] = []

    @property
    def period_s(self) -> float:
        return self._inner.period_s

    @property
    def said(self) -> Sequence[str]:
        """A scaler's decisions in words, where it has `said`."""
        found: Sequence[str] = getattr(self._inner, "said", ())
        return found

    def tick(self, view: View) -> Sequence[Change]:
        self.moments.append(_moment(view))
        return [self._faulty(change) for change in self._inner.tick(view)]

    def _faulty(self, change: Change) -> Change:
        if not isinstance(change, Start):
            return change
        self._starts += 1
        return Start(change.role, math.inf) if self._starts - 1 in self._faults.stuck_starts else change


def _moment(view: View) -> Moment:
    counts: dict[Phase, dict[str, int]] = {phase: {} for phase in Phase}
    for one in view.workers:
        of = counts[one.phase]
        of[one.role.value] = of.get(one.role.value, 0) + 1
    return Moment(view.now_s, counts[Phase.STARTING], counts[Phase.READY], counts[Phase.DRAINING])
