"""What goes wrong or turns suddenly: a burst, a day's wave, another mix of traffic, lost metrics, a stuck start, a wrong profile.

`scaling` runs these beside the traces. Each gives Rows with its bars; where the issue gives no figure the row says what happened.
"""

from collections.abc import Callable
from itertools import pairwise

from penstock_core.endpoint import Role

from benchmarks.scaling_bars import GOAL, Row
from benchmarks.scaling_clairvoyant import Search, clairvoyant
from benchmarks.scaling_runs import Bench, Measured, Run, Size
from benchmarks.scaling_scenes import BURST, SHIFT_S
from benchmarks.scaling_watch import Faults

START_S = 100.0
INTERVALS = 3
FITTED_S = 900.0
"""By then a wrong profile should have been corrected."""
MOST_OFF_POINTS = 3.0
LOST_S = (600.0, 2_400.0)
TUNING_SEED = 1
WRONG_SEEDS = {1: 6, 2: 3}
"""Staircases for tuning, and sizes to begin with: one that goes down, one that jumps up."""

Bars = list[tuple[str, float, str, bool]]


def _row(name: str, one: Measured, beside: dict[str, float], bars: Bars) -> Row:
    return Row(
        name=name,
        start_s=one.run.start_s,
        goodput_ratio=one.goodput_ratio,
        hours=one.hours,
        turns_per_hour=one.turns_per_hour,
        beside=beside,
        bars=tuple(bars),
    )


def burst(bench: Bench, scaler: str) -> list[Row]:
    """What the minute cost, and that the fleet is small again a quarter of an hour later."""
    found = bench.measure("burst", [Run(scene="burst", seed=1, size=Size(both=1), start_s=s, scaler=scaler) for s in (0.0, START_S)])
    rows = []
    for one in found:
        begins, ends = BURST[0][0], BURST[0][0] + BURST[1][0]
        late = max((moment.paid for moment in one.moments if moment.at_s >= ends + 900.0), default=0)
        beside = {
            "% of the minute": one.goodput_between(begins, ends) * 100.0,
            "% of 15 min after": one.goodput_between(ends, ends + 900.0) * 100.0,
            "most replicas": float(max(moment.paid for moment in one.moments)),
        }
        rows.append(_row("burst ×10", one, beside, [("replicas 15 min later", float(late), "≤ 2", late <= 2)]))
    return rows


def wave(bench: Bench, scaler: str) -> list[Row]:
    """Four hours for a day: hours beside the clairvoyant's."""
    best = bench.each("wave: clairvoyant", clairvoyant, [Search("wave", 1, START_S, GOAL)])[0]
    one = bench.measure("wave", [Run(scene="wave", seed=1, size=best.run.size, start_s=START_S, scaler=scaler)])[0]
    met = ("attainment", one.goodput_ratio, f"≥ {GOAL:.0%}", one.goodput_ratio >= GOAL)
    return [_row("daily wave", one, {"× clairvoyant": one.hours / best.hours}, [met])]


def shift(bench: Bench, scaler: str) -> list[Row]:
    """P:D must follow within three intervals of the new traffic's being seen."""
    run = Run(scene="shift", seed=1, size=Size(prefill=4, decode=2), start_s=START_S, scaler=scaler)
    one = bench.measure("shift", [run])[0]
    before = [moment for moment in one.moments if moment.at_s <= SHIFT_S][-1]
    period_s = one.moments[1].at_s - one.moments[0].at_s
    followed = next(
        (
            moment.at_s - SHIFT_S
            for moment in one.moments
            if moment.at_s > SHIFT_S
            and moment.wanted(Role.DECODE) / max(1, moment.wanted(Role.PREFILL))
            > before.wanted(Role.DECODE) / max(1, before.wanted(Role.PREFILL))
        ),
        float("inf"),
    )
    last = one.moments[-3]
    beside = {
        "P before": float(before.wanted(Role.PREFILL)), "D before": float(before.wanted(Role.DECODE)),
        "P at the end": float(last.wanted(Role.PREFILL)), "D at the end": float(last.wanted(Role.DECODE)),
        "% after": one.goodput_between(SHIFT_S, one.span_s) * 100.0,
    }  # fmt: skip
    # What a decision changes is seen at the next tick.
    most_s = (INTERVALS + 1) * period_s
    return [_row("prompts → answers", one, beside, [("seconds until D:P grows", followed, f"≤ {most_s:g}", followed <= most_s)])]


def lost(bench: Bench, scaler: str) -> list[Row]:
    """Half an hour without metrics: nothing changes."""
    run = Run(scene="wave", seed=1, size=Size(both=2), start_s=START_S, scaler=scaler, faults=Faults(lost_s=LOST_S))
    one = bench.measure("metrics lost", [run])[0]
    during = [moment for moment in one.moments if LOST_S[0] + 30.0 <= moment.at_s <= LOST_S[1]]
    changes = sum(a.wanted(Role.BOTH) != b.wanted(Role.BOTH) for a, b in pairwise(during))
    return [_row("metrics lost for 30 min", one, {"changes meanwhile": float(changes)}, [("changes", float(changes), "0", changes == 0)])]


def stuck(bench: Bench, scaler: str) -> list[Row]:
    """A replica that never becomes ready is replaced: attainment beside the run in which it does."""
    runs = [
        Run(scene="staircase", seed=TUNING_SEED, size=Size(both=6), start_s=START_S, scaler=scaler, faults=faults)
        for faults in (Faults(), Faults(stuck_starts=(0,)))
    ]
    plain, one = bench.measure("never ready", runs)
    starting = [moment.starting.get(Role.BOTH.value, 0) for moment in one.moments]
    held_s = sum(b.at_s - a.at_s for (a, b), many in zip(pairwise(one.moments), starting, strict=False) if many)
    apart = (plain.goodput_ratio - one.goodput_ratio) * 100.0
    gone = starting[-1] == 0
    beside = {"points below the healthy run": apart, "s with a starting replica": held_s}
    return [_row("a replica never ready", one, beside, [("starting at the end", float(starting[-1]), "0", gone)])]


def wrong(bench: Bench, scaler: str) -> list[Row]:
    """Everybody is told that engines are half as fast, or half as fast again, as they are."""
    speeds = (1.0, 0.5, 1.5)
    runs = [
        Run(scene="staircase", seed=seed, size=Size(both=size), start_s=START_S, scaler=scaler, declared_speed=speed)
        for seed, size in WRONG_SEEDS.items()
        for speed in speeds
    ]
    found = bench.measure("wrong profile", runs)
    later = {(one.run.seed, one.run.declared_speed): one.goodput_between(FITTED_S, one.span_s) * 100.0 for one in found}
    rows = []
    for one in found:
        seed, speed = one.run.seed, one.run.declared_speed
        off = later[seed, 1.0] - later[seed, speed]
        bars = [] if speed == 1.0 else [("points below the right profile", off, f"≤ {MOST_OFF_POINTS:g}", off <= MOST_OFF_POINTS)]
        rows.append(_row(f"staircase {seed}, profile says ×{speed:g}", one, {f"% after {FITTED_S:g} s": later[seed, speed]}, bars))
    return rows


STORIES: dict[str, Callable[[Bench, str], list[Row]]] = {
    "burst": burst,
    "wave": wave,
    "shift": shift,
    "lost": lost,
    "stuck": stuck,
    "wrong": wrong,
}
