"""The autoscaler against fixed sizes and a clairvoyant schedule, in virtual time. `make bench-scaling ARGS="..."`.

Parts: `frontier` (what fixed sizes reach on the conversation trace), `traces`, `divided` (the same with P/D pools),
`staircases`, `stories`. Needs the conversation trace: `--traces FOLDER` or PENSTOCK_TRACES. Runs without a scaler are
remembered in benchmarks/results/scaling-runs, which `--fresh` forgets. Figures go to benchmarks/results/scaling-PART.json.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.scaling_bars import STARTS_S, Row, on_staircases, on_traces
from benchmarks.scaling_frontier import frontier
from benchmarks.scaling_runs import KEPT, Bench
from benchmarks.scaling_scenes import TRACES_VARIABLE, conversation
from benchmarks.scaling_stories import STORIES
from benchmarks.table import RESULTS

PROTOTYPE = {
    "stationary": {"4": (80.8, 1.98), "5": (96.3, 2.47), "6": (97.8, 2.96), "7": (98.4, 3.45), "8": (98.8, 3.94)},
    "ramp": {"6": (97.7, 4.23), "7": (98.5, 4.94), "8": (98.9, 5.63)},
    "step": {"6": (96.8, 4.33), "7": (98.3, 5.06), "8": (98.8, 5.78)},
}
"""Goodput in % and GPU-hours that the design gives for fixed sizes."""
STAIRCASE_STARTS_S = (100.0, 300.0)
CONSOLE = Console(width=None if sys.stdout.isatty() else 170)


def frontiers(bench: Bench, _options: argparse.Namespace) -> list[Row]:
    """Every fixed size on the three shapes of the trace, undivided and in pairs."""
    for scene in PROTOTYPE:
        for divided in (False, True):
            line = frontier(bench, scene, divided=divided)
            table = Table(title=f"{scene}: fixed {'(P, D) pairs' if divided else 'sizes'}", title_justify="left")
            for heading in ("size", "goodput %", "given", "replica-hours", "given", "TTFT met %", "ITL met %", "on the frontier"):
                table.add_column(heading, justify="left" if heading == "size" else "right")
            for one in line.found:
                goodput, hours = PROTOTYPE[scene].get(str(one.run.size), (None, None))
                told = ["" if value is None else f"{value:g}" for value in (goodput, hours)]
                met = (f"{one.ttft_met_ratio:.2%}", f"{one.itl_met_ratio:.2%}", "yes" if one in line.best else "")
                table.add_row(str(one.run.size), f"{one.goodput_ratio * 100:.2f}", told[0], f"{one.hours:.2f}", told[1], *met)
            CONSOLE.print(table)
    return []


def traces(bench: Bench, options: argparse.Namespace) -> list[Row]:
    return on_traces(bench, options.scaler, options.scenes, options.starts or STARTS_S, False)


def divided(bench: Bench, options: argparse.Namespace) -> list[Row]:
    return on_traces(bench, options.scaler, options.scenes, options.starts or STARTS_S, True)


def staircases(bench: Bench, options: argparse.Namespace) -> list[Row]:
    return on_staircases(bench, options.scaler, options.seeds, options.starts or STAIRCASE_STARTS_S, options.judge, not options.no_line)


def stories(bench: Bench, options: argparse.Namespace) -> list[Row]:
    return [row for name in options.stories for row in STORIES[name](bench, options.scaler)]


PARTS: dict[str, Callable[[Bench, argparse.Namespace], list[Row]]] = {
    "frontier": frontiers,
    "traces": traces,
    "divided": divided,
    "staircases": staircases,
    "stories": stories,
}
NEED_TRACE = {"frontier", "traces", "divided"}


def show(part: str, scaler: str, rows: Sequence[Row]) -> None:
    table = Table(title=f"{part}: {scaler}", title_justify="left")
    for heading in ("what", "start-up s", "attainment %", "replica-hours", "turns/h", "beside it", "must show"):
        table.add_column(heading, justify="right" if heading in ("start-up s", "attainment %", "replica-hours", "turns/h") else "left")
    for row in rows:
        beside = "\n".join(f"{name} {_number(name, value)}" for name, value in row.beside.items())
        bars = "\n".join(f"[{'green' if ok else 'red'}]{what} {_number(what, value)} ({bar})[/]" for what, value, bar, ok in row.bars)
        figures = (f"{row.start_s:g}", f"{row.goodput_ratio * 100:.2f}", f"{row.hours:.2f}", f"{row.turns_per_hour:.1f}")
        table.add_row(row.name, *figures, beside, bars)
    CONSOLE.print(table)
    missed = sum(not ok for row in rows for *_, ok in row.bars)
    CONSOLE.print(f"{sum(len(row.bars) for row in rows) - missed} bars reached, {missed} missed\n")


def _number(name: str, value: float) -> str:
    return f"{value:.1%}" if name.startswith("hours ") or name.endswith("attainment") else f"{value:.2f}"


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; several times: several")
    parser.add_argument("--scaler", default="penstock", help="penstock, naive, or module:function, which makes a Controller for a Run")
    parser.add_argument("--traces", type=Path, help=f"folder with the conversation trace; else ${TRACES_VARIABLE}, else ./traces")
    parser.add_argument("--scenes", nargs="+", choices=PROTOTYPE, default=list(PROTOTYPE), help="of `traces` and `divided`")
    parser.add_argument("--stories", nargs="+", choices=STORIES, default=list(STORIES), help="of `stories`")
    parser.add_argument("--starts", nargs="+", type=float, help="start-up times in seconds, instead of those that the bars are for")
    parser.add_argument("--seeds", type=int, default=20, help="how many staircases")
    parser.add_argument("--judge", action="store_true", help="staircases of the seeds for judging, instead of those for tuning")
    parser.add_argument("--no-line", action="store_true", help="staircases without the router's line, for scaler and clairvoyant")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--fresh", action="store_true", help="forget remembered runs first")
    return parser.parse_args()


def main() -> int:
    options = _parsed()
    if options.traces is not None:
        os.environ[TRACES_VARIABLE] = str(options.traces.absolute())  # for the processes, too
    parts = options.part or list(PARTS)
    if NEED_TRACE & set(parts):
        try:
            conversation()
        except FileNotFoundError as error:
            print(error)
            parts = [part for part in parts if part not in NEED_TRACE]
    if options.fresh:
        shutil.rmtree(KEPT, ignore_errors=True)
    RESULTS.mkdir(exist_ok=True)
    with Bench(options.jobs) as bench:
        for part in parts:
            rows = PARTS[part](bench, options)
            if rows:
                show(part, options.scaler, rows)
                (RESULTS / f"scaling-{part}.json").write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
