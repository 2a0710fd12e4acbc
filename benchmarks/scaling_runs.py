"""Replays for the `scaling` benchmarks: one run of a scene, what is kept of it, and a folder that remembers runs.

A run is of a fixed size, of a schedule known beforehand, or of a scaler (any Controller factory by name, see `scalers`). Runs without a
scaler are remembered under benchmarks/results/scaling-runs with a fingerprint of how simulator and default policy behave, so that a
changed scaler is judged in a minute. Figures are the simulator's own.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.endpoint import Role
from penstock_router.admission.claim import LineLimits
from penstock_simulator.cluster import replay
from penstock_simulator.generate import Traffic, generate
from penstock_simulator.report import request_tpot_s, request_ttft_s, summarise
from penstock_simulator.setup import Replay, Setup, WorkerSpec, same_workers
from penstock_simulator.workload import Workload

from benchmarks.scaling_scenes import SCENES, Scene
from benchmarks.scaling_watch import Faults, Moment, Watched, factory_named
from benchmarks.table import RESULTS

T = TypeVar("T")
BIN_S = 10.0
KEPT = RESULTS / "scaling-runs"
PRESENT = "benchmarks.scaling_present:"
"""How the names of scalers in that module begin."""


class Size(msgspec.Struct, frozen=True, order=True):
    """Replicas by role; `6` or `5P3D` in a word."""

    both: int = 0
    prefill: int = 0
    decode: int = 0

    def __str__(self) -> str:
        return f"{self.prefill}P{self.decode}D" if self.prefill or self.decode else str(self.both)

    @property
    def replicas(self) -> int:
        return self.both + self.prefill + self.decode

    def workers(self, scene: Scene, declared_speed: float) -> tuple[WorkerSpec, ...]:
        made = same_workers(self.both, prefill=self.prefill, decode=self.decode, profile=scene.profile)
        if declared_speed == 1.0:
            return made
        return tuple(msgspec.structs.replace(one, declared=scene.profile.at_speed(declared_speed)) for one in made)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One replay; everything that decides its result, so that it names it."""

    scene: str
    seed: int = 0
    size: Size
    """From the start."""
    schedule: tuple[tuple[float, int], ...] = ()
    """(s, undivided replicas that are to be ready from then on); empty: no schedule."""
    start_s: float = 0.0
    scaler: str = ""
    """Name of a Controller factory; empty: none."""
    goal_ratio: float = 0.97
    """What a scaler is told to reach."""
    declared_speed: float = 1.0
    """Routers and scaler are told that engines are so many times as fast as they are."""
    faults: Faults = Faults()
    part_s: tuple[float, float] | None = None
    """Only what arrives between these."""
    line: bool = False
    """Requests wait, and are shed, in the router's line as its defaults say; False: every one is placed as it comes."""

    def measure(self) -> "Measured":
        found, watched = self._replay()
        summary = summarise(found)
        good = _good(found)
        arrivals, goods = _binned(found.arrival_s, good)
        return Measured(
            run=self,
            goodput_ratio=float(good.mean()) if len(good) else 1.0,
            good=int(good.sum()),
            requests=len(good),
            ttft_met_ratio=summary.ttft_met_ratio,
            itl_met_ratio=summary.itl_met_ratio,
            ttft_mean_s=summary.ttft_s.mean,
            not_served=summary.requests - summary.outcomes.get("ok", 0),
            hours=float(found.worker_s.sum()) / 3_600.0,
            span_s=found.span_s,
            arrivals_by_bin=arrivals,
            good_by_bin=goods,
            moments=tuple(watched.moments) if watched is not None else (),
            said=tuple(watched.said) if watched is not None else (),
        )

    def _replay(self) -> tuple[Replay, Watched | None]:
        scene = SCENES[self.scene]
        watched = Watched(factory_named(self.scaler)(self), self.faults) if self.scaler else None
        workers = scheduled(self, scene) if self.schedule else self.size.workers(scene, self.declared_speed)
        setup = Setup(
            workers=workers,
            slo=scene.slo,
            seed=self.seed,
            turn_order=scene.turn_order,
            admission=LineLimits() if self.line else None,
            make_controller=(lambda: watched) if watched is not None else None,
            spare_workers=4 * scene.sizes[-1] if watched is not None else 0,
        )
        return replay(workload(self.scene, self.seed, self.part_s), setup), watched


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was worth."""

    run: Run
    goodput_ratio: float
    good: int
    requests: int
    ttft_met_ratio: float
    itl_met_ratio: float
    ttft_mean_s: float | None
    not_served: int
    hours: float
    """Replica-hours, starting and draining ones included."""
    span_s: float
    arrivals_by_bin: tuple[int, ...]
    """Of BIN_S each."""
    good_by_bin: tuple[int, ...]
    moments: tuple[Moment, ...] = ()
    """What a scaler's fleet was at each of its ticks."""
    said: tuple[str, ...] = ()

    @property
    def turns_per_hour(self) -> float:
        """Changes of direction, up after down or down after up, summed over the roles."""
        turns = 0
        for role in Role:
            sizes = np.array([one.wanted(role) for one in self.moments])
            steps = np.sign(np.diff(sizes))
            steps = steps[steps != 0]
            turns += int((np.diff(steps) != 0).sum())
        return turns * 3_600.0 / max(1.0, self.span_s)

    def goodput_between(self, since_s: float, until_s: float) -> float:
        """Share of the requests that arrived then, to BIN_S."""
        part = slice(int(since_s // BIN_S), int(until_s // BIN_S))
        return sum(self.good_by_bin[part]) / max(1, sum(self.arrivals_by_bin[part]))


@lru_cache(maxsize=2)
def whole(scene: str, seed: int) -> Workload:
    return SCENES[scene].make(seed)


def workload(scene: str, seed: int, part_s: tuple[float, float] | None) -> Workload:
    full = whole(scene, seed)
    if part_s is None:
        return full
    first, last = np.searchsorted(full.arrival_s, part_s)
    offsets = full.offsets[first : last + 1]
    return msgspec.structs.replace(
        full,
        arrival_s=full.arrival_s[first:last] - part_s[0],
        prompt_tokens=full.prompt_tokens[first:last],
        output_tokens=full.output_tokens[first:last],
        chain=full.chain[offsets[0] : offsets[-1]],
        offsets=offsets - offsets[0],
        follows=full.follows[first:last],
        gap_s=full.gap_s[first:last],
    )


def scheduled(run: Run, scene: Scene) -> tuple[WorkerSpec, ...]:
    """Workers whose lives make the schedule true: asked for `start_s` ahead, the latest to come is the first to go."""
    made: list[WorkerSpec] = []
    there: list[int] = []
    for at_s, size in run.schedule:
        while len(there) < size:
            asked_s = max(0.0, at_s - run.start_s)
            ready_s = asked_s + run.start_s if at_s > 0.0 else 0.0
            there.append(len(made))
            made.append(WorkerSpec(id=f"worker-{len(made)}", profile=scene.profile, asked_s=asked_s, ready_s=ready_s))
        while len(there) > size:
            gone = there.pop()
            made[gone] = msgspec.structs.replace(made[gone], drains_s=at_s)
    return tuple(made)


def _good(found: Replay) -> NDArray[np.bool_]:
    """Which requests met both targets, shape (R,)."""
    slo = found.setup.slo
    ttft, tpot = request_ttft_s(found), request_tpot_s(found)
    served = np.array([one == "ok" for one in found.outcomes], bool)
    good: NDArray[np.bool_] = served & (ttft <= slo.ttft_s) & (np.isnan(tpot) | (tpot <= slo.itl_s))
    return good


def _binned(arrival_s: NDArray[np.float64], good: NDArray[np.bool_]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    bins = (arrival_s // BIN_S).astype(np.int64)
    return tuple(np.bincount(bins).tolist()), tuple(np.bincount(bins, weights=good).astype(int).tolist())


# -- many of them ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Of how simulator and default policy behave: remembered runs of another one do not count."""
    made = generate(Traffic(kind="bursts", requests=250, rate=25.0, prompt_tokens=2_500, output_tokens=60))
    seen = [
        summarise(replay(made, Setup(workers=workers, turn_order=False)))
        for workers in (same_workers(2), same_workers(prefill=1, decode=1))
    ]
    return hashlib.sha256(msgspec.json.encode(seen)).hexdigest()[:12]


@lru_cache(maxsize=64)
def _content(scene: str, seed: int) -> str:
    """Of what is asked, so that a scene that is changed is another one."""
    made, cuts = whole(scene, seed), SCENES[scene].cuts(seed)
    parts = [one.tobytes() for one in (made.arrival_s, made.prompt_tokens, made.output_tokens, np.array(cuts))]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def kept_as(what: "msgspec.Struct", scene: str, seed: int) -> Path:
    """Where the result of a run or a search of that scene is remembered."""
    named = f"{type(what).__name__} {SCENES[scene].slo} {SCENES[scene].turn_order}".encode() + msgspec.json.encode(what)
    return KEPT / f"{hashlib.sha256(named).hexdigest()[:20]}-{_content(scene, seed)}-{fingerprint()}.json"


def measured(run: Run) -> Measured:
    """From the folder, else by replaying it: always where a scaler is at work, but for those that know the present, which do not change."""
    if run.scaler and not run.scaler.startswith(PRESENT):
        return run.measure()
    path = kept_as(run, run.scene, run.seed)
    if path.is_file():
        return msgspec.json.decode(path.read_bytes(), type=Measured)
    found = run.measure()
    KEPT.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(found))
    new.replace(path)
    return found


class Bench:
    """State: the processes. One process more than one is only worth it where there are cores."""

    def __init__(self, jobs: int) -> None:
        self._pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def each(self, what: str, work: Callable[[T], Measured], things: Sequence[T]) -> list[Measured]:
        """The work of all things, in the order given; says how far it is."""
        waiting = {self._pool.submit(work, thing): at for at, thing in enumerate(things)}
        found: list[Measured | None] = [None] * len(things)
        for done, future in enumerate(as_completed(waiting), 1):
            found[waiting[future]] = future.result()
            if sys.stderr.isatty() or done == len(things):
                sys.stderr.write(f"\r{what}: {done} of {len(things)}" + ("\n" if done == len(things) else ""))
                sys.stderr.flush()
        return [one for one in found if one is not None]

    def measure(self, what: str, runs: Sequence[Run]) -> list[Measured]:
        return self.each(what, measured, runs)
