"""What a controller of a simulated fleet is shown, and the changes it may ask for. Values, and the Protocol it keeps.

`control` carries it out; the autoscaler's loop, or a test's ten lines, implements Controller.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec
from penstock_autoscaler.observation import Phase
from penstock_core.endpoint import Role
from penstock_core.traffic import Window


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """One worker at the moment of the tick."""

    id: str
    role: Role
    phase: Phase
    ready_s: float
    running: int
    waiting: int
    prefill_tokens: int
    """Prompt tokens still to compute."""
    kv_used_tokens: int
    kv_tokens: int


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What happened between two ticks, and the fleet at the second."""

    traffic: Window
    workers: tuple[WorkerView, ...]

    @property
    def now_s(self) -> float:
        return self.traffic.until_s


class Start(msgspec.Struct, frozen=True):
    """A worker more; ready `start_s` from now."""

    role: Role
    start_s: float


class Drain(msgspec.Struct, frozen=True):
    """The worker of that id leaves as soon as it is empty; one that is starting leaves at once."""

    worker: str


class Switch(msgspec.Struct, frozen=True):
    """The worker of that id takes another role as soon as it is empty, and keeps its cache."""

    worker: str
    role: Role


Change = Start | Drain | Switch


class Controller(Protocol):
    """Asked every `period_s` of virtual time. One object a replay."""

    @property
    def period_s(self) -> float: ...

    def tick(self, view: View) -> Sequence[Change]: ...
