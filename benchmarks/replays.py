"""Many replays of the simulator on a few processes, with progress: what the simulated benchmarks have in common.

`measure_all` is what they call, again and again with what they want to know next. Figures are those of `report`.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
from penstock_core.slo import Slo
from penstock_simulator.cluster import replay
from penstock_simulator.report import Summary, summarise
from penstock_simulator.setup import Setup
from penstock_simulator.workload import Workload
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.cells import BY_NAME

SLO = Slo(2.0, 0.025)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One replay of a cell; `changed` are fields of its Setup."""

    cell: str
    policy: str
    load: float
    seed: int
    share: float = 1.0
    slo: Slo = SLO
    judged: Slo | None = None
    """Targets that goodput is counted by; None: `slo`, which requests are placed by."""
    trace: Path | None = None
    changed: dict[str, Any] = {}

    def measure(self) -> Summary:
        setup = Setup(**{"workers": BY_NAME[self.cell].workers, "policy": self.policy, "slo": self.slo, "seed": self.seed, **self.changed})
        return summarise(replay(_workload(self.cell, self.load, self.seed, self.share, self.trace), setup), self.judged)


@lru_cache(maxsize=4)
def _workload(cell: str, load: float, seed: int, share: float, trace: Path | None) -> Workload:
    return BY_NAME[cell].make(load, seed, share, trace)


class Replays:
    """State: the processes, and the bar that says how far they are."""

    def __init__(self, pool: ProcessPoolExecutor, bar: Progress) -> None:
        self._pool, self._bar = pool, bar

    def measure_all(self, what: str, runs: Sequence[Run]) -> list[Summary]:
        """Their figures, in the order given. `what` is said meanwhile."""
        task = self._bar.add_task(what, total=len(runs))
        found = []
        for summary in self._pool.map(Run.measure, runs):
            found.append(summary)
            self._bar.advance(task)
        self._bar.remove_task(task)
        return found

    def say(self, text: str) -> None:
        self._bar.console.print(text)


@contextmanager
def replays(jobs: int) -> Iterator[Replays]:
    """`jobs` processes; what they say and the bar go to standard error."""
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True, highlight=False, emoji=False, width=None if sys.stderr.isatty() else 160)
    bar = Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool, bar:
        yield Replays(pool, bar)


def spread(values: list[float], sign: str = "") -> str:
    """Mean ± half the range."""
    return f"{statistics.mean(values):{sign}.2f} ±{(max(values) - min(values)) / 2:.2f}"
