"""The default policy against `block-cost` at its best scale, cell by cell: both tables of the design's "Simulator" section.

`python -m benchmarks.policies --trace mooncake_conversation.jsonl.zst [--seeds 3] [--cell 5P3D]` replays the conversation hour.
Every scale from 1 to 1,000 gets its chance in every cell with the first seed, in the same order of placing as ours; the two of
the best goodput run with all seeds, and the better of them is compared in goodput, mean and p99 TTFT and p99 TPOT: better, equal
within the spread, or worse.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

from penstock_core.slo import Slo
from penstock_simulator.report import Summary, summarise
from penstock_simulator.traces import read_trace
from penstock_simulator.workload import Workload
from rich.console import Console
from rich.table import Table

from benchmarks.simulator import COLUMNS, SLO, Case, figures
from benchmarks.table import RESULTS

OURS = "target-misses"
SCALES = (1, 8, 32, 100, 320, 1_000)
JUDGED = {"goodput": 1.0, "ttft": -1.0, "p99": -1.0, "tpot_p99": -1.0}
"""Figure → whether more is better."""
LEAST_SPREAD = {"goodput": 0.02, "ttft": 0.5, "p99": 5.0, "tpot_p99": 0.1}
"""Differences below these (points, ms) are no differences, whatever the seeds say."""


@dataclass(frozen=True)
class Cell:
    """A cell of the tables; `ordered`: requests of one instant are placed in the scheduler's order, which is the default."""

    name: str
    speed: float
    fleet: str = "8"
    slo: Slo = SLO
    gb_per_s: float = math.inf
    spread: bool = False
    ordered: bool = True

    def case(self, policy: str) -> Case:
        return Case(policy, self.speed, self.fleet, self.gb_per_s, self.spread, self.ordered)


CELLS = (
    Cell("×2, stored, in arrival order", 2, ordered=False),
    Cell("×2, stored", 2),
    Cell("×2, spread", 2, spread=True),
    Cell("×3, stored", 3),
    Cell("×3, spread", 3, spread=True),
    Cell("1 s / 25 ms, in arrival order", 2, slo=Slo(1.0, 0.025), ordered=False),
    Cell("0.5 s / 50 ms, in arrival order", 2, slo=Slo(0.5, 0.05), ordered=False),
    Cell("0.5 s / 50 ms", 2, slo=Slo(0.5, 0.05)),
    Cell("5P3D free, in arrival order", 2, "5P3D", ordered=False),
    Cell("5P3D free", 2, "5P3D"),
    Cell("5P3D 25 GB/s, in arrival order", 2, "5P3D", gb_per_s=25, ordered=False),
    Cell("5P3D 25 GB/s", 2, "5P3D", gb_per_s=25),
)


@lru_cache(maxsize=1)
def _trace(path: Path) -> Workload:
    return read_trace(path)


def measure(run: tuple[Path, Cell, str, int]) -> Summary:
    path, cell, policy, seed = run
    return summarise(cell.case(policy).run(_trace(path), seed, cell.slo))


class Row:
    """One policy in one cell, over the seeds."""

    def __init__(self, policy: str, summaries: Sequence[Summary]) -> None:
        self.policy = policy
        rows = [figures(one) for one in summaries]
        self.values = {column: [row[column] for row in rows] for column in COLUMNS}

    def mean(self, column: str) -> float:
        return statistics.mean(self.values[column])

    def half_range(self, column: str) -> float:
        return (max(self.values[column]) - min(self.values[column])) / 2

    def shown(self, column: str) -> str:
        digits = 2 if column == "goodput" else 1
        return f"{self.mean(column):.{digits}f} ±{self.half_range(column):.{digits}f}"


def rows_of(pool: Executor, trace: Path, cell: Cell, policies: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    summaries = list(pool.map(measure, [(trace, cell, policy, seed) for policy in policies for seed in seeds]))
    return [Row(policy, summaries[at * len(seeds) : (at + 1) * len(seeds)]) for at, policy in enumerate(policies)]


def verdict(column: str, ours: Row, theirs: Row) -> str:
    """better, equal (within the larger half range of the two, or the least difference that counts) or worse."""
    gain = (ours.mean(column) - theirs.mean(column)) * JUDGED[column]
    same = max(LEAST_SPREAD[column], ours.half_range(column), theirs.half_range(column))
    return "equal" if abs(gain) <= same else "better" if gain > 0.0 else "worse"


def table(found: Sequence[tuple[Cell, Row, Row]]) -> Table:
    shown = Table(title="target-misses against block-cost at its best scale", title_justify="left")
    for heading in ("cell", "policy", "goodput %", "TTFT ms", "p99", "TPOT p99 ms", "hits %", "goodput", "TTFT", "p99", "TPOT p99"):
        shown.add_column(heading, justify="left" if heading in ("cell", "policy") else "right", no_wrap=True)
    colours = {"better": "[green]better", "equal": "equal", "worse": "[red]worse"}
    for cell, ours, theirs in found:
        judged = [colours[verdict(column, ours, theirs)] for column in JUDGED]
        shown.add_row(cell.name, ours.policy, *(ours.shown(column) for column in (*JUDGED, "hit")), *judged)
        shown.add_row("", theirs.policy, *(theirs.shown(column) for column in (*JUDGED, "hit")), end_section=True)
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, help="mooncake_conversation.jsonl, .zst or not")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cell", default="", help="only cells whose name holds this")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    if options.trace is None:
        print("needs --trace mooncake_conversation.jsonl[.zst]; it is not part of the project (github.com/kvcache-ai/Mooncake)")
        return 0
    found: list[tuple[Cell, Row, Row]] = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for cell in (one for one in CELLS if options.cell in one.name):
            ours, *scales = rows_of(pool, options.trace, cell, (OURS, *(f"block-cost:{scale}" for scale in SCALES)), range(1))
            best = sorted(scales, key=lambda row: row.mean("goodput"))[-2:]
            ours, *best = rows_of(pool, options.trace, cell, [row.policy for row in (ours, *best)], range(options.seeds))
            found.append((cell, ours, max(best, key=lambda row: row.mean("goodput"))))
            said = ", ".join(f"{column} {verdict(column, *found[-1][1:])}" for column in JUDGED)
            sys.stderr.write(f"{cell.name}: {found[-1][1].shown('goodput')} / {found[-1][2].shown('goodput')} %: {said}\n")
    Console(width=190).print(table(found))
    RESULTS.mkdir(exist_ok=True)
    kept = [{"cell": cell.name, **{row.policy: row.values for row in rows}} for cell, *rows in found]
    (RESULTS / "policies.json").write_text(json.dumps(kept, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
