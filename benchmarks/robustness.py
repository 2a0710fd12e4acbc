"""Is the default policy never worse than the best of the others, whatever the traffic?

`python -m benchmarks.robustness --traces FOLDER [--quick]` (the folder holds azure_2023_conv.csv[.zst]; without it those cells are left
out). For every kind of traffic of `cells`: find the load at which the best baseline has 90–97 % goodput, tuning the scale of
block-cost there, on some seeds; judge on others. The bar: never worse by more than 0.3 point, better in most.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from penstock_core.slo import Slo
from penstock_simulator.report import Summary
from rich.console import Console
from rich.table import Table

from benchmarks.cells import CELLS, Cell, trace_for
from benchmarks.replays import Replays, Run, replays, spread
from benchmarks.table import RESULTS

OURS = "target-misses"
PLAIN = ("round-robin", "least-request", "power-of-two", "prefix-affinity", "lmetric", "conductor")
COARSE = (1, 32, 100)
FINE = (0.25, 4, 8, 16, 64, 300)
LEAST_GOODPUT, MOST_GOODPUT = 0.90, 0.97
_STEP = 1.12
_MOST_STEPS = 14
ALLOWED_POINTS = -0.3


@dataclass(frozen=True)
class Plan:
    """How much is run: seeds to tune on, other seeds to judge on, and the share of each cell's requests."""

    tuning: tuple[int, ...]
    judging: tuple[int, ...]
    scales: tuple[float, ...]
    """Of block-cost, tried beside the coarse ones where the load is found."""
    share: float
    slo: Slo
    traces: Path | None

    def runs(self, cell: Cell, policies: tuple[str, ...], load: float, seeds: tuple[int, ...]) -> list[Run]:
        trace = trace_for(cell, self.traces)
        return [
            Run(cell=cell.name, policy=policy, load=load, seed=seed, share=self.share, slo=self.slo, trace=trace)
            for policy in policies
            for seed in seeds
        ]


@dataclass(frozen=True)
class Verdict:
    """One cell, judged: goodput in % by seed, times in ms; `points`: ours minus the best baseline, by seed."""

    cell: str
    load: float
    unit: str
    baseline: str
    goodput: dict[str, list[float]]
    points: list[float]
    ttft_ms: dict[str, float]
    tpot_p99_ms: dict[str, float]

    @property
    def mean(self) -> float:
        return statistics.mean(self.points)

    @property
    def in_range(self) -> bool:
        """Whether the load found on the tuning seeds is one of those meant on the judging ones too."""
        return LEAST_GOODPUT <= statistics.mean(self.goodput[self.baseline]) / 100.0 <= MOST_GOODPUT


def find_load(cell: Cell, plan: Plan, run: Replays) -> tuple[float, str]:
    """The load at which the best baseline has 90–97 % on the tuning seeds, and the best scale of block-cost there."""
    policies = (*PLAIN, *names(COARSE))
    low, high, load = 0.0, 0.0, cell.load
    for _ in range(_MOST_STEPS):
        goodput = tuned(cell, plan, run, policies, load)
        best = max(goodput.values())
        run.say(f"{cell.name}: at {load:.4g} {cell.unit} the best baseline, {max(goodput, key=goodput.__getitem__)}, has {best:.2%}")
        if LEAST_GOODPUT <= best <= MOST_GOODPUT:
            break
        low, high = (load, high) if best > MOST_GOODPUT else (low, load)
        load = low * _STEP if not high else high / _STEP if not low else (low * high) ** 0.5
    goodput |= tuned(cell, plan, run, names(plan.scales), load)
    return load, max((name for name in goodput if name.startswith("block-cost")), key=goodput.__getitem__)


def tuned(cell: Cell, plan: Plan, run: Replays, policies: tuple[str, ...], load: float) -> dict[str, float]:
    """Mean goodput of each policy on the tuning seeds."""
    found = run.measure_all(f"{cell.name}: tuning at {load:.4g} {cell.unit}", plan.runs(cell, policies, load, plan.tuning))
    return dict(zip(policies, means(found, len(plan.tuning)), strict=True))


def names(scales: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f"block-cost:{scale:g}" for scale in scales)


def means(found: list[Summary], seeds: int) -> list[float]:
    goodput = [one.goodput_ratio for one in found]
    return [statistics.mean(goodput[at : at + seeds]) for at in range(0, len(goodput), seeds)]


def judge(cell: Cell, plan: Plan, run: Replays) -> Verdict:
    load, scaled = find_load(cell, plan, run)
    policies = (OURS, *PLAIN, scaled)
    found = run.measure_all(f"{cell.name}: judging", plan.runs(cell, policies, load, plan.judging))
    many = len(plan.judging)
    by_policy = {policy: found[at * many : (at + 1) * many] for at, policy in enumerate(policies)}
    goodput = {policy: [100.0 * one.goodput_ratio for one in rows] for policy, rows in by_policy.items()}
    best = max((*PLAIN, scaled), key=lambda policy: statistics.mean(goodput[policy]))
    points = [ours - theirs for ours, theirs in zip(goodput[OURS], goodput[best], strict=True)]
    ttft = {policy: statistics.mean(1e3 * (one.ttft_s.mean or 0.0) for one in rows) for policy, rows in by_policy.items()}
    tpot = {policy: statistics.mean(1e3 * (one.tpot_s.p99 or 0.0) for one in rows) for policy, rows in by_policy.items()}
    verdict = Verdict(cell.name, load, cell.unit, best, goodput, points, ttft, tpot)
    run.say(f"{cell.name}: {spread(goodput[OURS])} against {spread(goodput[best])} of {best}: {spread(points, '+')} points")
    return verdict


def table(verdicts: list[Verdict], plan: Plan) -> Table:
    title = (
        f"Goodput in %, TTFT ≤ {plan.slo.ttft_s * 1e3:g} ms and ITL ≤ {plan.slo.itl_s * 1e3:g} ms; tuned on seeds {plan.tuning}, "
        f"judged on {plan.judging}; mean ± half the range"
    )
    shown = Table(title=title, title_justify="left")
    for heading in ("traffic", "load", OURS, "best baseline", "which", "points", "", "mean TTFT ms", "p99 TPOT ms", "others"):
        shown.add_column(heading, justify="left" if heading in ("traffic", "which", "others") else "right")
    for one in verdicts:
        fine = one.mean >= ALLOWED_POINTS
        verdict = "[green]better" if fine and one.mean > 0 else "[green]within" if fine else "[red]worse"
        others = sorted((-statistics.mean(values), policy) for policy, values in one.goodput.items() if policy not in (OURS, one.baseline))
        shown.add_row(
            one.cell,
            f"{one.load:.4g} {one.unit}",
            spread(one.goodput[OURS]),
            spread(one.goodput[one.baseline]) + ("" if one.in_range else " [yellow](not 90–97)"),
            one.baseline,
            spread(one.points, "+"),
            verdict,
            f"{one.ttft_ms[OURS]:.0f} | {one.ttft_ms[one.baseline]:.0f}",
            f"{one.tpot_p99_ms[OURS]:.1f} | {one.tpot_p99_ms[one.baseline]:.1f}",
            ", ".join(f"{policy} {-goodput:.1f}" for goodput, policy in others),
        )
    worst, better = min(one.mean for one in verdicts), sum(one.mean > 0 for one in verdicts)
    shown.caption = f"Must: never below {ALLOWED_POINTS} (least: {worst:+.2f}), better in most ({better} of {len(verdicts)})."
    shown.caption_justify = "left"
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, help="folder with azure_2023_conv.csv, .zst or not")
    parser.add_argument("--cell", default="", help="only cells whose name contains this")
    parser.add_argument("--slo-ttft-ms", type=float, default=2_000.0)
    parser.add_argument("--slo-itl-ms", type=float, default=25.0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help="half of the requests, one seed to tune, two to judge, fewer scales")
    given = parser.parse_args()
    slo = Slo(given.slo_ttft_ms / 1e3, given.slo_itl_ms / 1e3)
    if given.quick:
        plan = Plan((0,), (100, 101), (8,), 0.5, slo, given.traces)
    else:
        plan = Plan((0, 1), (100, 101, 102, 103), FINE, 1.0, slo, given.traces)
    cells = [cell for cell in CELLS if given.cell in cell.name and (not cell.trace or trace_for(cell, plan.traces))]
    if not cells:
        print(f"cell is {given.cell!r}; allowed: part of one of {', '.join(cell.name for cell in CELLS)} (those of a trace need --traces)")
        return 2
    with replays(given.jobs) as run:
        verdicts = [judge(cell, plan, run) for cell in cells]
    Console(width=None if sys.stdout.isatty() else 220, emoji=False).print(table(verdicts, plan))
    if len(cells) < len(CELLS):
        print(f"Left out: {', '.join(cell.name for cell in CELLS if cell not in cells)}.")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "robustness.json").write_text(json.dumps([asdict(one) for one in verdicts], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
