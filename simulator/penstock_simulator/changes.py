"""What a controller of a simulated fleet is shown, and the changes it may ask for. Values, and the Protocol it keeps.

`control` carries it out; the autoscaler's loop, or a test's ten lines, implements Controller.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.endpoint import Role


class State(StrEnum):
    """Of a worker that is paid for."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    """It takes nothing new, ends what it has, and leaves or changes its role."""


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """One worker at the moment of the tick."""

    id: str
    role: Role
    state: State
    ready_s: float
    running: int
    waiting: int
    prefill_tokens: int
    """Prompt tokens still to compute."""
    kv_used_tokens: int
    kv_tokens: int


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that ended since the last tick, in the order they did; arrays of shape (E,)."""

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    hit_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    ttft_s: NDArray[np.float64]
    """NaN where no token came."""
    tpot_s: NDArray[np.float64]
    """NaN for answers of one token and for those cut short."""
    ok: NDArray[np.bool_]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What happened between two ticks, and the fleet at the second; arrays of shape (A,): what arrived."""

    since_s: float
    now_s: float
    workers: tuple[WorkerView, ...]
    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    ended: Ended


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
