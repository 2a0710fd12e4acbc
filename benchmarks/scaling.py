"""The autoscaler against fixed sizes and a clairvoyant schedule, in virtual time. `make bench-scaling ARGS="..."`.

`--part frontier` shows what fixed sizes reach on the conversation trace. Needs the trace: `--traces FOLDER` or PENSTOCK_TRACES.
Runs without a scaler are remembered in benchmarks/results/scaling-runs; `--fresh` forgets them.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.scaling_frontier import frontier
from benchmarks.scaling_runs import KEPT, Bench
from benchmarks.scaling_scenes import TRACES_VARIABLE, conversation

PROTOTYPE = {
    "stationary": {"4": (80.8, 1.98), "5": (96.3, 2.47), "6": (97.8, 2.96), "7": (98.4, 3.45), "8": (98.8, 3.94)},
    "ramp": {"6": (97.7, 4.23), "7": (98.5, 4.94), "8": (98.9, 5.63)},
    "step": {"6": (96.8, 4.33), "7": (98.3, 5.06), "8": (98.8, 5.78)},
}
"""Goodput in % and GPU-hours that the design gives for fixed sizes."""
CONSOLE = Console(width=150)


def frontiers(bench: Bench, options: argparse.Namespace) -> None:
    """Every fixed size on the three shapes of the trace, undivided and in pairs."""
    for scene in PROTOTYPE:
        for divided in (False, True) if options.divided else (False,):
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


PARTS: dict[str, Callable[[Bench, argparse.Namespace], None]] = {"frontier": frontiers}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="only this one")
    parser.add_argument("--traces", type=Path, help=f"folder with the conversation trace; else ${TRACES_VARIABLE}, else ./traces")
    parser.add_argument("--divided", action="store_true", help="fixed (P, D) pairs, too")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--fresh", action="store_true", help="forget remembered runs first")
    options = parser.parse_args()
    if options.traces is not None:
        os.environ[TRACES_VARIABLE] = str(options.traces.absolute())  # for the processes, too
    try:
        conversation()
    except FileNotFoundError as error:
        print(error)
        return 0
    if options.fresh:
        shutil.rmtree(KEPT, ignore_errors=True)
    with Bench(options.jobs) as bench:
        for name in (options.part,) if options.part else PARTS:
            PARTS[name](bench, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
