"""What a local fleet should do next: desired replicas a pool against the workers there are. Pure; `fleet` carries it out.

Level-triggered: the same desired counts and observations give the same actions, however they came about. Worker ids are
`<pool>-<number>` of the pool they were started for. Of a pool's workers the lowest numbers stay, before those that came from other pools.
"""

import itertools
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec


class Phase(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    SWITCHING = "switching"
    """It has been told to serve in its pool's role, and does so when it is empty."""
    DRAINING = "draining"
    DRAINED = "drained"
    DEAD = "dead"


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as it was seen. Times are seconds of one clock."""

    id: str
    pool: str
    phase: Phase
    since_s: float
    """When this phase began."""
    failures: int = 0
    """Ends and failed starts in a row, without FleetLimits.stable_s of being ready in between."""
    restarts: int = 0
    silent_since_s: float | None = None
    """Since when a ready worker has not answered; None: it answers."""
    given_up: bool = False
    """Somebody wants its start to be tried anew."""
    misplaced: bool = False
    """It serves in another role than its pool's."""


class FleetLimits(msgspec.Struct, frozen=True):
    """All waits of a fleet, in seconds; each more than 0."""

    start_s: float = 120.0
    """Longest start of a worker; then it is ended and started anew."""
    drain_s: float = 60.0
    """Longest drain before a worker is ended with what still runs."""
    silent_s: float = 30.0
    """How long a ready worker may not answer before it is ended and started anew."""
    stable_s: float = 60.0
    """Ready for so long, earlier failures are forgotten."""
    backoff_first_s: float = 0.25
    """Wait after the first failure; doubles with each further one."""
    backoff_most_s: float = 30.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: more than 0 seconds")

    def backoff_s(self, failures: int) -> float:
        """Wait before the next start; none before the first failure."""
        return 0.0 if failures < 1 else min(self.backoff_most_s, self.backoff_first_s * 2.0 ** min(failures - 1, 60))


class Do(StrEnum):
    """What to do with a worker."""

    START = "start"
    SWITCH = "switch"
    DRAIN = "drain"
    STOP = "stop"
    FORGET = "forget"


class Action(msgspec.Struct, frozen=True):
    """One step, and why in a few words."""

    do: Do
    id: str
    pool: str
    reason: str


def worker_id(pool: str, number: int) -> str:
    return f"{pool}-{number}"


def plan(desired: Mapping[str, int], observed: Sequence[Observed], limits: FleetLimits, now_s: float) -> list[Action]:
    """The actions of this moment; none when the fleet is as desired or has only to wait."""
    known = {worker.id for worker in observed}
    wanted: set[str] = set()
    actions: list[Action] = []
    for pool, count in desired.items():
        staying = sorted((worker.id for worker in observed if worker.pool == pool), key=lambda name: _order(name, pool))[:count]
        free = (name for name in (worker_id(pool, number) for number in itertools.count()) if name not in known)
        missing = list(itertools.islice(free, count - len(staying)))
        wanted.update(staying)
        actions += [Action(Do.START, name, pool, f"{len(staying)} of {count} are there") for name in missing]
    for worker in observed:
        step = _keep(worker, limits, now_s) if worker.id in wanted else _remove(worker, limits, now_s)
        if step is not None:
            actions.append(Action(step[0], worker.id, worker.pool, step[1]))
    return actions


def _order(name: str, pool: str) -> tuple[bool, int, str]:
    """Its own pool's workers by number, then those that came from others."""
    own, _, number = name.rpartition("-")
    return own != pool, int(number), name


def _keep(worker: Observed, limits: FleetLimits, now_s: float) -> tuple[Do, str] | None:
    """A worker that is wanted."""
    age_s = now_s - worker.since_s
    if worker.phase is Phase.DEAD:
        wait_s = limits.backoff_s(worker.failures)
        return (Do.START, f"ended, failure {worker.failures}") if age_s >= wait_s else None
    if worker.phase is Phase.STARTING and worker.given_up:
        return Do.STOP, f"given up after {age_s:.0f} s, tried anew"
    if worker.phase is Phase.STARTING and age_s >= limits.start_s:
        return Do.STOP, f"not ready after {limits.start_s:g} s"
    if worker.phase is Phase.READY and worker.misplaced:
        return Do.SWITCH, "wanted in another role"
    if worker.phase is Phase.READY and worker.silent_since_s is not None and now_s - worker.silent_since_s >= limits.silent_s:
        return Do.STOP, f"silent for {limits.silent_s:g} s"
    return _end_drain(worker, limits, age_s)  # a drain cannot be taken back: it ends, and the worker is started anew


def _remove(worker: Observed, limits: FleetLimits, now_s: float) -> tuple[Do, str] | None:
    """A worker that is not wanted."""
    if worker.phase in (Phase.READY, Phase.SWITCHING):
        return Do.DRAIN, "not desired"
    if worker.phase is Phase.STARTING:
        return Do.STOP, "not desired, and not ready yet"
    if worker.phase is Phase.DEAD:
        return Do.FORGET, "not desired, and ended"
    return _end_drain(worker, limits, now_s - worker.since_s)


def _end_drain(worker: Observed, limits: FleetLimits, age_s: float) -> tuple[Do, str] | None:
    if worker.phase is Phase.DRAINED:
        return Do.STOP, "drained"
    if worker.phase is Phase.SWITCHING and age_s >= limits.drain_s:
        return Do.STOP, f"not empty after {limits.drain_s:g} s"
    if worker.phase is Phase.DRAINING and age_s >= limits.drain_s:
        return Do.STOP, f"not drained after {limits.drain_s:g} s"
    return None
