"""What a replay is given, beside the workload, and what it leaves behind.

`penstock simulate`, the benchmarks and the autoscaler make a Setup; `cluster` turns it into a Replay, `report` and `plots`
read that. Values only.
"""

import math
import re
from collections.abc import Callable, Hashable
from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.endpoint import Role
from penstock_core.errors import Outcome
from penstock_core.profile import DEFAULT_PROFILE, EngineProfile, profile_named
from penstock_core.slo import DEFAULT_SLO, Slo
from penstock_router.admission.claim import Claim, LineLimits
from penstock_router.policies import Policy

from penstock_simulator.changes import Controller
from penstock_simulator.workload import Workload


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated worker and its life. Times are seconds of the replay; None: never."""

    id: str
    role: Role = Role.BOTH
    profile: EngineProfile = DEFAULT_PROFILE
    """How it really computes."""
    declared: EngineProfile | None = None
    """What it tells the router; None: the truth."""
    asked_s: float = 0.0
    """From then on it costs accelerator seconds."""
    ready_s: float = 0.0
    drains_s: float | None = None
    """No new placements from then on; it leaves when it is empty."""
    dies_s: float | None = None


class FrontEnd(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds between a request's arrival and its place in an engine's queue: HTTP, tokenising, wake-ups. Measured, not guessed."""

    constant_s: float = 0.0
    per_token_s: float = 0.0
    """For each prompt token, cached or not."""

    def __post_init__(self) -> None:
        for name in ("constant_s", "per_token_s"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"front end: {name} is {getattr(self, name)!r}; allowed: 0 or more")


class Bookings(StrEnum):
    """What routers know of one another's bookings."""

    NONE = "none"
    """Only what load reports say."""
    HEARD = "heard"
    """News of them, an exchange delay old."""
    MIRRORED = "mirrored"
    """The same, and for that long each own booking of a prompt also counts at w + k·N/R: the others are taken to place alike."""
    SHARED = "shared"
    """Choosing an endpoint and booking there is one step of all routers (compare and book in a common ledger); the rest is heard."""


MOST_ROUTERS = 16


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a replay that is not the workload."""

    workers: tuple[WorkerSpec, ...]
    policy: str = "target-misses"
    make_policy: Callable[[], Policy] | None = None
    """Makes each router's policy instead, which `policy` only names then: for studies of policies that do not ship."""
    slo: Slo = DEFAULT_SLO
    seed: int = 0
    turn_order: bool = True
    """Requests of one instant are placed and sent in the order of the router's `turn_order`; False: as they came."""
    admission: LineLimits | None = None
    """How the router's line behaves; None: every request is placed as it comes."""
    claims: tuple[Claim, ...] = ()
    """Tenant and priority of each request; empty: all alike."""
    together: bool = True
    """Arrivals of one instant are placed in one turn; False: each in a turn of its own."""
    front_end: FrontEnd = FrontEnd()
    """None by default: a trace study is of engines and routing."""
    report_period_s: float = 1.0
    report_lag_s: float = 0.0
    """Age of a load report when the router hears it."""
    index_lag_s: float = 0.0
    """How long a change of a cache takes to be seen by the router."""
    routers: int = 1
    """Replicas of the router, each with beliefs of its own; a request goes to any of them."""
    bookings: Bookings = Bookings.HEARD
    exchange_s: float = 0.05
    """Age of news from another router; also how often routers tell how far their streams are."""
    make_controller: Callable[[], Controller] | None = None
    """Makes what starts, drains and re-roles workers during the replay; None: the fleet stays as given."""
    spare_workers: int = 0
    """How many workers there may be at once beyond `workers`, where there is a controller. Started ones are like the first worker."""
    known_lengths: bool = False
    """The router knows how long each answer will be: what the best prediction could be worth."""
    kinds: tuple[Hashable, ...] = ()
    """What distinguishes a request's answer from others', one per request; empty: its prompt's length alone."""
    fitted: bool = True
    """Declared profiles are corrected by measured passes."""
    given_hit_tokens: tuple[int, ...] = ()
    """Of each request's prompt, what every worker has cached without its cache being looked at: for traffic whose sizes and hits are
    known and whose content is not. Empty: caches say."""
    max_tokens: tuple[int, ...] = ()
    """Each request's own limit; empty: none has one."""

    def __post_init__(self) -> None:
        if not self.workers:
            raise ValueError("workers is empty; allowed: 1 or more")
        if self.admission is not None and self.routers > 1:
            raise ValueError(f"routers is {self.routers!r} with admission; allowed: 1, each router would have a line of its own")
        if not 0.0 < self.report_period_s < math.inf:
            raise ValueError(f"report_period_s is {self.report_period_s!r}; allowed: more than 0")
        if not 1 <= self.routers <= MOST_ROUTERS:
            raise ValueError(f"routers is {self.routers!r}; allowed: 1..{MOST_ROUTERS}")
        if not 0 <= self.spare_workers <= _MOST_WORKERS:
            raise ValueError(f"spare_workers is {self.spare_workers!r}; allowed: 0..{_MOST_WORKERS}")
        for name in ("report_lag_s", "index_lag_s", "exchange_s"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: 0 or more")
        if 0.0 < self.exchange_s < 0.001:
            raise ValueError(f"exchange_s is {self.exchange_s!r}; allowed: 0, or 0.001 and more")


def same_workers(count: int = 0, *, prefill: int = 0, decode: int = 0, profile: EngineProfile = DEFAULT_PROFILE) -> tuple[WorkerSpec, ...]:
    """`count` workers that do both, and dedicated ones, all with the same profile."""
    kinds = ((Role.BOTH, "worker", count), (Role.PREFILL, "prefill", prefill), (Role.DECODE, "decode", decode))
    return tuple(WorkerSpec(id=f"{name}-{i}", role=role, profile=profile) for role, name, many in kinds for i in range(many))


_MIX = re.compile(r"(?P<count>[0-9]{1,4})x(?P<profile>[^@/]+)(?:@(?P<speed>[0-9.]+))?(?:/(?P<role>prefill|decode|both))?")
MIX_FORM = "COUNTxPROFILE[@SPEED][/ROLE],..."
_MOST_WORKERS = 1_024


def mixed_workers(mix: str) -> tuple[WorkerSpec, ...]:
    """Workers of several kinds: `4xpolynomial-reference,4xpolynomial-reference@0.5` has four that are half as fast.

    A part is MIX_FORM; without a role a worker does both. Raises ValueError naming the part and what is allowed.
    """
    specs: list[WorkerSpec] = []
    for part in mix.split(","):
        found = _MIX.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"mix is {part.strip()!r}; allowed: {MIX_FORM}, e.g. 4xpolynomial-reference@0.5/decode")
        profile = profile_named(found["profile"])
        if found["speed"]:
            profile = profile.at_speed(_speed(found["speed"], part.strip()))
        role = Role(found["role"] or Role.BOTH)
        name = "worker" if role is Role.BOTH else role.value
        before = sum(spec.role is role for spec in specs)
        specs += [WorkerSpec(id=f"{name}-{before + i}", role=role, profile=profile) for i in range(int(found["count"]))]
    if not 1 <= len(specs) <= _MOST_WORKERS:
        raise ValueError(f"mix is {mix!r}, {len(specs)} workers; allowed: 1..{_MOST_WORKERS} in all")
    return tuple(specs)


def _speed(text: str, part: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"mix is {part!r}: speed is {text!r}; allowed: 0.01..1000") from None


class Sample(msgspec.Struct, frozen=True):
    """The fleet at one moment; arrays of shape (W,)."""

    now_s: float
    running: NDArray[np.int64]
    waiting: NDArray[np.int64]
    used_blocks: NDArray[np.int64]
    hit_tokens: NDArray[np.int64]
    """Since the start."""
    prompt_tokens: NDArray[np.int64]


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """What happened; per request arrays have shape (R,)."""

    workload: Workload
    setup: Setup
    arrival_s: NDArray[np.float64]
    first_s: NDArray[np.float64]
    """NaN where no token came."""
    last_s: NDArray[np.float64]
    outcomes: list[Outcome]
    worker: NDArray[np.int64]
    """Where it decoded, −1: nowhere."""
    gaps: NDArray[np.int64]
    """Inter-token gaps by logarithmic bin, see `fleet`."""
    counters: NDArray[np.int64]
    """The engines' counters, (W, WORKER_ROW)."""
    busy_s: NDArray[np.float64]
    worker_s: NDArray[np.float64]
    """Seconds that each worker was paid for."""
    span_s: float
    samples: list[Sample]
