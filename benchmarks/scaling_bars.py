"""What the autoscaler must show on the traces and the staircases: each figure beside its bar.

`scaling` calls one function a part; each gives rows for its table and for the JSON file. Bars are those of the design's section on the
autoscaler and of its issue. A bar that is missed is shown, and never an error.
"""

import statistics
from collections.abc import Sequence

import msgspec

from benchmarks.scaling_clairvoyant import Search, clairvoyant
from benchmarks.scaling_frontier import Frontier, frontier
from benchmarks.scaling_present import NAMES
from benchmarks.scaling_runs import Bench, Measured, Run, Size
from benchmarks.scaling_scenes import JUDGED, SCENES

STARTS_S = (0.0, 30.0, 60.0, 120.0, 180.0)
GOAL = 0.97
LEAST_SAVED = {0.0: 0.08, 60.0: 0.04, 120.0: 0.0}
"""On the ramp: share of the frontier's hours at equal goodput, by start-up time."""
MOST_ABOVE = {0.0: 0.10, 60.0: 0.15, 120.0: 0.20}
"""On the ramp: hours above the clairvoyant's."""
MOST_BELOW_POINTS = 0.3
MOST_TURNS = 4.0
MOST_LOST_POINTS = 0.5
MOST_STAIRCASE = {100.0: 1.2, 300.0: 1.35}
PAIRS = {"stationary": Size(prefill=5, decode=2), "ramp": Size(prefill=3, decode=2), "step": Size(prefill=3, decode=2)}
"""To begin with."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a table; a bar is (what, measured, bar in words, whether it is reached)."""

    name: str
    start_s: float
    goodput_ratio: float
    hours: float
    turns_per_hour: float
    beside: dict[str, float]
    """Figures to compare with, by name."""
    bars: tuple[tuple[str, float, str, bool], ...] = ()


def on_traces(bench: Bench, scaler: str, scenes: Sequence[str], starts_s: Sequence[float], divided: bool) -> list[Row]:
    """The three shapes of the conversation trace against their frontier; the ramp against the clairvoyant, too."""
    rows = []
    for scene in scenes:
        line = frontier(bench, scene, divided=divided)
        size = PAIRS[scene] if divided else Size(both=SCENES[scene].first)
        runs = [Run(scene=scene, size=size, start_s=start_s, scaler=scaler, goal_ratio=GOAL) for start_s in starts_s]
        found = bench.measure(f"{scene}: {scaler} at start-up {', '.join(f'{one:g}' for one in starts_s)} s", runs)
        known: dict[float, float] = {}
        if not divided:
            wanted = [Search(scene, 0, start_s, GOAL) for start_s in starts_s if start_s in MOST_ABOVE]
            seen = bench.each(f"{scene}: clairvoyant", clairvoyant, wanted)
            known = {search.start_s: one.hours for search, one in zip(wanted, seen, strict=True)}
        rows += [_trace_row(scene, one, found[0], line, known.get(one.run.start_s), divided) for one in found]
        if scene == "step" and not divided:
            rows += _knowing_the_present(bench, scene, line)
    return rows


def _knowing_the_present(bench: Bench, scene: str, line: Frontier) -> list[Row]:
    """What a start-up of 120 s costs whoever knows no future."""
    size = Size(both=SCENES[scene].first)
    rows = []
    for name, who in NAMES.items():
        runs = [Run(scene=scene, size=size, start_s=start_s, scaler=who, goal_ratio=GOAL) for start_s in (0.0, 120.0)]
        found = bench.measure(f"{scene}: {name}", runs)
        made = [_trace_row(scene, one, found[0], line, None, False) for one in found]
        rows += [msgspec.structs.replace(row, name=f"{scene}: {name}") for row in made]
    return rows


def _trace_row(scene: str, one: Measured, instant: Measured, line: Frontier, clairvoyant_hours: float | None, divided: bool) -> Row:
    start_s = one.run.start_s
    bars: list[tuple[str, float, str, bool]] = []
    beside: dict[str, float] = {}
    at_cost, at_goodput = line.goodput_at(one.hours), line.hours_at(one.goodput_ratio)
    if at_cost is not None:
        beside["points above the frontier"] = (one.goodput_ratio - at_cost) * 100.0
    if at_goodput is not None:
        beside["hours saved at equal goodput"] = 1.0 - one.hours / at_goodput
    if clairvoyant_hours is not None:
        beside["hours above the clairvoyant"] = one.hours / clairvoyant_hours - 1.0
    if scene == "stationary":
        below = -beside.get("points above the frontier", 0.0)
        bars.append(("points below the frontier", below, f"≤ {MOST_BELOW_POINTS}", below <= MOST_BELOW_POINTS))
        if not divided:
            bars.append(("turns an hour", one.turns_per_hour, f"≤ {MOST_TURNS:g}", one.turns_per_hour <= MOST_TURNS))
    if scene == "ramp" and start_s in LEAST_SAVED and at_goodput is not None:
        saved = beside["hours saved at equal goodput"]
        bars.append(("hours saved at equal goodput", saved, f"≥ {LEAST_SAVED[start_s]:.0%}", saved >= LEAST_SAVED[start_s]))
    if scene == "ramp" and clairvoyant_hours is not None:
        above = beside["hours above the clairvoyant"]
        bars.append(("hours above the clairvoyant", above, f"≤ {MOST_ABOVE[start_s]:.0%}", above <= MOST_ABOVE[start_s]))
    if scene != "stationary" and start_s == 120.0 and instant.run.start_s == 0.0:
        lost = (instant.goodput_ratio - one.goodput_ratio) * 100.0
        bars.append(("points lost to start-up 120 s", lost, f"≤ {MOST_LOST_POINTS}", lost <= MOST_LOST_POINTS))
    return Row(
        name=f"{scene} {'P/D' if divided else 'aggregated'}",
        start_s=start_s,
        goodput_ratio=one.goodput_ratio,
        hours=one.hours,
        turns_per_hour=one.turns_per_hour,
        beside=beside,
        bars=tuple(bars),
    )


def on_staircases(bench: Bench, scaler: str, seeds: int, starts_s: Sequence[float], judged: bool, line: bool) -> list[Row]:
    """Random staircases beside their clairvoyants: a row each, the medians with their bars, and what knowing the present would reach."""
    first = JUDGED if judged else 1
    rows: list[Row] = []
    for start_s in starts_s:
        wanted = [Search("staircase", seed, start_s, GOAL, line) for seed in range(first, first + seeds)]
        known = bench.each(f"staircases, start-up {start_s:g} s: clairvoyant", clairvoyant, wanted)

        def reached(who: str, known: Sequence[Measured] = known, start_s: float = start_s) -> list[Row]:
            runs = [
                Run(scene="staircase", seed=one.run.seed, size=one.run.size, start_s=start_s, scaler=who, goal_ratio=GOAL, line=line)
                for one in known
            ]
            found = bench.measure(f"staircases, start-up {start_s:g} s: {who}", runs)
            return [_staircase_row(one, best) for one, best in zip(found, known, strict=True)]

        each = reached(scaler)
        rows += [*each, _medians(each, start_s)]
        for name, who in NAMES.items():
            row = _medians(reached(who), start_s)
            rows.append(msgspec.structs.replace(row, name=f"{row.name}: {name}", bars=()))
    return rows


def _staircase_row(one: Measured, best: Measured) -> Row:
    return Row(
        name=f"staircase {one.run.seed}",
        start_s=one.run.start_s,
        goodput_ratio=one.goodput_ratio,
        hours=one.hours,
        turns_per_hour=one.turns_per_hour,
        beside={"× clairvoyant": one.hours / best.hours, "clairvoyant %": best.goodput_ratio * 100.0, "clairvoyant hours": best.hours},
    )


def _medians(each: Sequence[Row], start_s: float) -> Row:
    goodput = statistics.median(one.goodput_ratio for one in each)
    times = statistics.median(one.beside["× clairvoyant"] for one in each)
    bars = [("median attainment", goodput, f"≥ {GOAL:.0%}", goodput >= GOAL)]
    if start_s in MOST_STAIRCASE:
        bars.append(("median × clairvoyant", times, f"≤ {MOST_STAIRCASE[start_s]:g}", times <= MOST_STAIRCASE[start_s]))
    return Row(
        name=f"median of {len(each)}",
        start_s=start_s,
        goodput_ratio=goodput,
        hours=statistics.median(one.hours for one in each),
        turns_per_hour=statistics.median(one.turns_per_hour for one in each),
        beside={"× clairvoyant": times, "worst %": min(one.goodput_ratio for one in each) * 100.0},
        bars=tuple(bars),
    )
