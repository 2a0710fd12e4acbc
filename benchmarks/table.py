"""Rows of a benchmark: measured value with spread, beside the figure to reach; printed as a table, kept as JSON.

Every benchmark of this folder ends here. A row that misses its figure is marked, never an error: the machines are shared.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One measured figure; `samples` are the runs, the median is what counts; `goal` is an upper bound or None."""

    name: str
    unit: str
    samples: tuple[float, ...]
    goal: float | None = None
    note: str = ""
    detail: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def reached(self) -> bool | None:
        return None if self.goal is None else self.median <= self.goal


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the table: median, spread as min–max, number of runs, goal."""
    table = Table(title=title, title_justify="left")
    for heading in ("what", "median", "min–max", "runs", "must reach", "", "note"):
        table.add_column(heading, justify="right" if heading in ("median", "min–max", "runs", "must reach") else "left")
    for row in rows:
        verdict = {True: "[green]reached", False: "[red]missed", None: ""}[row.reached]
        goal = "–" if row.goal is None else f"≤ {row.goal:g} {row.unit}"
        spread = f"{min(row.samples):.4g}–{max(row.samples):.4g}"
        table.add_row(row.name, f"{row.median:.4g} {row.unit}", spread, str(len(row.samples)), goal, verdict, row.note)
    table.caption = f"An empty Python loop takes {loop_ns():.0f} ns a pass on this machine at the moment (an idle EPYC 7003: 17)."
    table.caption_justify = "left"
    Console(width=150).print(table)


def keep(benchmark: str, rows: Sequence[Row]) -> Path:
    """Write benchmarks/results/<benchmark>.json with the machine it ran on; gives the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{benchmark}.json"
    machine = {"cores": len(os.sched_getaffinity(0)), "cpu": _cpu_name(), "python": platform.python_version(), "loop_ns": loop_ns()}
    rows_out = [{**asdict(row), "median": row.median, "reached": row.reached} for row in rows]
    result = {"benchmark": benchmark, "at": time.strftime("%FT%TZ", time.gmtime()), "machine": machine, "rows": rows_out}
    path.write_text(json.dumps(result, indent=1))
    return path


def loop_ns() -> float:
    """CPU nanoseconds of one pass of an empty loop, the best of five: how fast the machine is at the moment."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time_ns()
        for _ in range(400_000):
            pass
        best = min(best, (time.process_time_ns() - began) / 400_000)
    return best


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
