"""The clairvoyant: the cheapest piecewise-constant schedule of undivided sizes that meets the targets, found by search in the simulator.

Misses of every size in every part of the scene come from replays; a dynamic programme over the parts weighs them against replica-seconds,
start-up and drain included, for many prices of a miss; the schedules on its hull are replayed whole, and the cheapest one that reaches the
goal is trimmed: growth later, sizes down by one. A schedule knows the arrivals, so no scaler can be much cheaper at the same goal.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.profile import EngineProfile
from penstock_simulator.workload import Workload

from benchmarks.scaling_runs import BIN_S, KEPT, Measured, Run, Size, kept_as, measured, whole
from benchmarks.scaling_scenes import SCENES, arrivals_by

TRIMS = 2
"""Replays spent on trimming."""
LATER_S = (30.0, 60.0)
_PRICES_S = np.geomspace(0.05, 2_000.0, 60)

Schedule = tuple[tuple[float, int], ...]


class Search(msgspec.Struct, frozen=True):
    """What is looked for."""

    scene: str
    seed: int
    start_s: float
    goal_ratio: float
    line: bool = False
    """As in Run."""


@dataclass(frozen=True)
class Parts:
    """Of a scene: where they begin, how long they are, and the misses of each size there."""

    cuts: NDArray[np.float64]
    lengths_s: NDArray[np.float64]
    sizes: tuple[int, ...]
    misses: NDArray[np.float64]
    """Shape (parts, sizes)."""


def clairvoyant(search: Search) -> Measured:
    """The schedule's run; one searched before is only replayed. Raises ValueError where the largest size misses the goal."""
    path = kept_as(search, search.scene, search.seed)
    for known in sorted(KEPT.glob(f"{path.name.rpartition('-')[0]}-*.json")):
        # Found when simulator or policy behaved a little otherwise: the schedule counts, its figures are taken anew.
        again = replayed(search, msgspec.json.decode(known.read_bytes(), type=Measured).run.schedule)
        if again.goodput_ratio >= search.goal_ratio:
            return again
    parts = parts_of(search)
    found = _trimmed(search, parts, _cheapest(search, list(_hull(search, parts))))
    KEPT.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(found))
    return found


def replayed(search: Search, schedule: Schedule) -> Measured:
    first = Size(both=schedule[0][1])
    return measured(Run(scene=search.scene, seed=search.seed, size=first, schedule=schedule, start_s=search.start_s, line=search.line))


# -- misses by part and size -----------------------------------------------------------------------------------------


def parts_of(search: Search) -> Parts:
    """What each size would miss in each part of the scene."""
    scene = SCENES[search.scene]
    made = whole(search.scene, search.seed)
    cuts = scene.cuts(search.seed)
    ends = (*cuts[1:], float(made.arrival_s[-1]) + 1e-6)
    lengths_s = np.array(ends) - np.array(cuts)
    build = _misses_within if scene.cached else _misses_apart
    return Parts(np.array(cuts), lengths_s, scene.sizes, build(search, made, cuts, ends))


def _misses_within(search: Search, _made: Workload, cuts: Sequence[float], ends: Sequence[float]) -> NDArray[np.float64]:
    """From replays of the whole scene at every size: caches are those of the whole."""
    sizes = SCENES[search.scene].sizes
    misses = np.zeros((len(cuts), len(sizes)))
    for column, size in enumerate(sizes):
        one = measured(Run(scene=search.scene, seed=search.seed, size=Size(both=size), line=search.line))
        missed = np.array(one.arrivals_by_bin) - np.array(one.good_by_bin)
        for row, (since_s, until_s) in enumerate(zip(cuts, ends, strict=True)):
            misses[row, column] = missed[round(since_s / BIN_S) : round(until_s / BIN_S)].sum()
    return misses


def _misses_apart(search: Search, made: Workload, cuts: Sequence[float], ends: Sequence[float]) -> NDArray[np.float64]:
    """From replays of each part alone, at sizes near its load: the backlog of a size too small would spoil the next part."""
    scene = SCENES[search.scene]
    parts = arrivals_by(made, cuts)
    misses = np.zeros((len(cuts), len(scene.sizes)))
    for row, (since_s, until_s) in enumerate(zip(cuts, ends, strict=True)):
        here = np.flatnonzero(parts == row)
        load = _work_s(scene.profile, made, here) / (until_s - since_s)
        for column, size in enumerate(scene.sizes):
            if size < 0.85 * load:
                misses[row, column] = len(here)
            elif size > 1.15 * load + 1.0:
                misses[row, column] = misses[row, column - 1] if column else 0.0
            else:
                one = measured(Run(scene=search.scene, seed=search.seed, size=Size(both=size), part_s=(since_s, until_s), line=search.line))
                misses[row, column] = one.requests - one.good
    return misses


def _work_s(profile: EngineProfile, made: Workload, requests: NDArray[np.int64]) -> float:
    """Seconds of one replica, full of streams, that these requests take."""
    if not len(requests):
        return 0.0
    prompt, output = made.prompt_tokens[requests], made.output_tokens[requests]
    held = float((prompt + output / 2.0).mean())
    streams = max(1, min(profile.max_streams, int(profile.kv_tokens / float((prompt + output).mean()))))
    step_s = profile.decode_s(streams, streams * held) / streams
    return float(sum(profile.prefill_s(int(n)) for n in prompt) + output.sum() * step_s)


# -- schedules -------------------------------------------------------------------------------------------------------


def _hull(search: Search, parts: Parts) -> Iterator[Schedule]:
    """Schedules that are best for some price of a miss, the dearest first."""
    seen: set[Schedule] = set()
    for price_s in _PRICES_S[::-1]:
        sizes = _best(parts, float(price_s), search.start_s, _drain_s(search.scene))
        schedule = tuple(
            (float(at_s), size) for k, (at_s, size) in enumerate(zip(parts.cuts, sizes, strict=True)) if not k or size != sizes[k - 1]
        )
        if schedule not in seen:
            seen.add(schedule)
            yield schedule


def _best(parts: Parts, price_s: float, start_s: float, drain_s: float) -> list[int]:
    """Sizes by part that cost least, in replica-seconds, with misses at that price."""
    sizes = np.array(parts.sizes)
    up = np.maximum(0, sizes[None, :] - sizes[:, None]) * start_s
    moves = up + np.maximum(0, sizes[:, None] - sizes[None, :]) * drain_s  # (from, to)
    here = parts.lengths_s[:, None] * sizes[None, :] + price_s * parts.misses
    cost, came = here[0], np.zeros((len(here), len(sizes)), np.int64)
    for k in range(1, len(here)):
        total = cost[:, None] + moves
        came[k] = total.argmin(axis=0)
        cost = total.min(axis=0) + here[k]
    at = int(cost.argmin())
    chosen = [at]
    for k in range(len(here) - 1, 0, -1):
        at = int(came[k][at])
        chosen.append(at)
    return [int(sizes[at]) for at in reversed(chosen)]


def _drain_s(scene: str) -> float:
    """About how long a replica takes to empty: the mean answer."""
    profile = SCENES[scene].profile
    made = whole(scene, 0)
    return float(made.output_tokens.mean()) * profile.decode_s(16, 16.0 * float(made.prompt_tokens.mean()))


def _cheapest(search: Search, schedules: Sequence[Schedule]) -> Measured:
    """The first one from the cheap end that reaches the goal: goodput falls along the hull."""
    low, high = 0, len(schedules) - 1
    best = replayed(search, schedules[0])
    if best.goodput_ratio < search.goal_ratio:
        raise ValueError(f"{search}: the largest size reaches {best.goodput_ratio:.2%}; allowed: at least the goal")
    while low < high:
        middle = (low + high + 1) // 2
        one = replayed(search, schedules[middle])
        if one.goodput_ratio >= search.goal_ratio:
            low, best = middle, (one if one.hours < best.hours else best)
        else:
            high = middle - 1
    return best


def _trimmed(search: Search, parts: Parts, best: Measured) -> Measured:
    """Cheaper still, as long as the goal is reached: first what the misses foretell to fit into what the goal leaves."""
    for later_s in LATER_S:
        one = replayed(search, _later(best.run.schedule, later_s))
        if one.goodput_ratio < search.goal_ratio or one.hours >= best.hours:
            break
        best = one
    refused: set[Schedule] = set()
    for _ in range(TRIMS - len(LATER_S)):
        left = best.good - search.goal_ratio * best.requests
        fitting = [one for one in _smaller(parts, best.run.schedule) if one[2] not in refused and one[1] <= 1.5 * left]
        if not fitting:
            break
        _, _, schedule = max(fitting)
        one = replayed(search, schedule)
        if one.goodput_ratio >= search.goal_ratio and one.hours < best.hours:
            best = one
        else:
            refused.add(schedule)
    return best


def _later(schedule: Schedule, later_s: float) -> Schedule:
    """Growth so much later, where the schedule goes on as it is."""
    made = [schedule[0]]
    for k, (at_s, size) in enumerate(schedule[1:], 1):
        grows = size > schedule[k - 1][1]
        room = k + 1 == len(schedule) or schedule[k + 1][0] > at_s + 2.0 * later_s
        made.append((at_s + later_s if grows and room else at_s, size))
    return tuple(made)


def _smaller(parts: Parts, schedule: Schedule) -> Iterator[tuple[float, float, Schedule]]:
    """(replica-seconds saved, misses more, schedule with one part smaller by one)."""
    ends = (*(at_s for at_s, _ in schedule[1:]), float(parts.cuts[-1] + parts.lengths_s[-1]))
    for k, ((at_s, size), until_s) in enumerate(zip(schedule, ends, strict=True)):
        if size - 1 not in parts.sizes:
            continue
        here = (parts.cuts >= at_s - max(LATER_S)) & (parts.cuts < until_s - max(LATER_S))
        column = parts.sizes.index(size)
        more = float((parts.misses[here, column - 1] - parts.misses[here, column]).sum())
        yield until_s - at_s, more, (*schedule[:k], (at_s, size - 1), *schedule[k + 1 :])
