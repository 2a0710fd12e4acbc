"""Kinds of traffic, each with a fleet and the load at which they are interesting: what the simulated benchmarks judge policies on.

`robustness` looks for the load near `load` at which the best baseline has 90–97 % goodput, `ablation` takes `load` as it is. A seed gives
other requests of the same kind. Nothing here replays anything.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from penstock_simulator.generate import Traffic, generate
from penstock_simulator.setup import WorkerSpec, mixed_workers
from penstock_simulator.traces import read_trace
from penstock_simulator.workload import Workload, assemble

PLAIN = "polynomial-reference"

Made = Callable[[float, int, float, Path | None], Workload]
"""(load, seed, share of the requests, trace)."""


@dataclass(frozen=True)
class Cell:
    """One kind of traffic on one fleet. `load` is requests a second, or how many times faster a trace runs."""

    name: str
    mix: str
    load: float
    unit: str
    make: Made
    trace: str = ""
    """Start of the name of the trace file that it needs."""

    @property
    def workers(self) -> tuple[WorkerSpec, ...]:
        return mixed_workers(self.mix)


@cache
def whole(path: Path) -> Workload:
    return read_trace(path)


def azure(load: float, seed: int, share: float, path: Path | None) -> Workload:
    """A random half of the trace at twice the speed, so that seeds differ and the rate is that of all of it at `load`."""
    assert path is not None
    trace = whole(path)
    chosen = np.flatnonzero(np.random.default_rng(seed).random(trace.requests) < 0.5)[: int(trace.requests * share / 2)]
    return assemble(trace.name, (trace.asked(int(i)) for i in chosen), 0).at_speed(2.0 * load)


def conversation(load: float, seed: int, share: float, path: Path | None) -> Workload:
    """The conversation trace, arrivals spread; it is the same whatever the seed."""
    assert path is not None
    trace = whole(path)
    return trace.spread().first(int(trace.requests * share)).at_speed(load)


def made_up(kind: str, requests: int, **fields: float) -> Made:
    def make(load: float, seed: int, share: float, _path: Path | None) -> Workload:
        return generate(Traffic(kind=kind, rate=load, seed=seed, requests=int(requests * share), **fields))  # type: ignore[arg-type]

    return make


CELLS = (
    Cell("azure conversation, near ×10", f"5x{PLAIN}", 10.8, "× trace", azure, "azure"),
    Cell("azure conversation, near ×20", f"9x{PLAIN}", 19.5, "× trace", azure, "azure"),
    Cell("bursts, CV 4", f"8x{PLAIN}", 62.0, "req/s", made_up("bursts", 12_000, cv=4.0)),
    Cell("short prompts, high rate", f"8x{PLAIN}", 580.0, "req/s", made_up("poisson", 12_000, prompt_tokens=128, output_tokens=64)),
    Cell("half at half speed", f"4x{PLAIN},4x{PLAIN}@0.5", 37.0, "req/s", made_up("shared-prefix", 8_000, prompt_tokens=1_500)),
    Cell("multi-turn sessions", f"8x{PLAIN}", 34.0, "req/s", made_up("sessions", 10_000, gap_s=3.0)),
    Cell(
        "agent loops, tool gaps", f"8x{PLAIN}", 150.0, "req/s",
        made_up("agents", 12_000, prompt_tokens=400, output_tokens=100, turns=12, prefix_tokens=4_096, gap_s=5.0),
    ),
)  # fmt: skip
"""In which `robustness` judges; on `polynomial-reference`, under TTFT 2 s and ITL 25 ms."""

CONVERSATION = Cell("mooncake conversation", f"8x{PLAIN}", 3.0, "× trace", conversation, "mooncake")
DIVIDED = Cell("mooncake, 5P3D at 25 GB/s", f"5x{PLAIN}/prefill,3x{PLAIN}/decode", 2.0, "× trace", conversation, "mooncake")
BY_NAME = {cell.name: cell for cell in (*CELLS, CONVERSATION, DIVIDED)}


def trace_for(cell: Cell, folder: Path | None) -> Path | None:
    """The trace that the cell needs, out of `folder`; None where it needs none, or there is none."""
    if not cell.trace or folder is None:
        return None
    return next(
        (path for path in sorted(folder.iterdir()) if cell.trace in path.name and path.name.endswith((".csv", ".jsonl", ".zst"))), None
    )
