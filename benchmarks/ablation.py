"""What each ingredient of `target-misses` is worth, and how little it minds wrong profiles, stale views and wrong targets. Simulated.

`python -m benchmarks.ablation --traces FOLDER [--quick]`: points of goodput against the policy as it ships, by kind of traffic, at
loads where the best baselines have 90–97 % or a little less. Ingredients are left out by policies that do not ship (`ablated`).
"""

import argparse
import json
import math
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from penstock_core.slo import Slo
from penstock_simulator.report import Summary
from penstock_simulator.setup import WorkerSpec
from rich.console import Console
from rich.table import Table

from benchmarks.ablated import INGREDIENTS, Without
from benchmarks.cells import BY_NAME, CELLS, CONVERSATION, DIVIDED, Cell, trace_for
from benchmarks.replays import SLO, Run, replays
from benchmarks.table import RESULTS


@dataclass(frozen=True)
class Variant:
    """One column of the table: what is changed, and what is told to the router wrongly."""

    name: str
    changed: dict[str, Any] = field(default_factory=dict)
    declared_speed: float = 1.0
    declared_transfer: float | None = None
    slo: Slo = SLO

    def runs(self, cell: Cell, seeds: tuple[int, ...], share: float, trace: Path | None) -> list[Run]:
        changed = {**self.changed, "workers": tuple(self._told(spec) for spec in cell.workers)}
        return [
            Run(
                cell=cell.name, policy="target-misses", load=cell.load, seed=seed, share=share, slo=self.slo, judged=SLO, trace=trace,
                changed=changed,
            )
            for seed in seeds
        ]  # fmt: skip

    def _told(self, spec: WorkerSpec) -> WorkerSpec:
        told = spec.profile if self.declared_speed == 1.0 else spec.profile.at_speed(self.declared_speed)
        if self.declared_transfer is not None:
            told = msgspec.structs.replace(told, transfer_bytes_per_s=self.declared_transfer)
        return spec if told is spec.profile else msgspec.structs.replace(spec, declared=told)


SHIPS = Variant("as it ships")
WITHOUT = (
    *(Variant(f"without {name}", {"make_policy": Without(name)}) for name in INGREDIENTS),
    Variant("without turn order", {"turn_order": False}),
    Variant("without transfer", declared_transfer=math.inf),
)
WRONG = (
    Variant("told 1.5 × as fast", declared_speed=1.5),
    Variant("told half as fast", declared_speed=0.5),
    *(Variant(f"loads {age:g} s old", {"report_lag_s": age}) for age in (1.0, 5.0)),
    *(Variant(f"caches {age:g} s old", {"index_lag_s": age}) for age in (1.0, 5.0)),
    Variant("told 1 s / 12 ms", slo=Slo(1.0, 0.0125)),
    Variant("told 4 s / 50 ms", slo=Slo(4.0, 0.05)),
)


def points(found: list[Summary], base: list[Summary]) -> list[float]:
    return [100.0 * (one.goodput_ratio - other.goodput_ratio) for one, other in zip(found, base, strict=True)]


def table(title: str, cells: list[Cell], variants: tuple[Variant, ...], found: dict[tuple[str, str], list[Summary]]) -> Table:
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for cell in cells:
        shown.add_column(f"{cell.name} ({cell.load:g} {cell.unit})", justify="right")
    goodput = [statistics.mean(100.0 * one.goodput_ratio for one in found[cell.name, SHIPS.name]) for cell in cells]
    shown.add_row(f"{SHIPS.name}: goodput %", *(f"{value:.2f}" for value in goodput), end_section=True)
    for variant in variants:
        by_cell = [points(found[cell.name, variant.name], found[cell.name, SHIPS.name]) for cell in cells]
        shown.add_row(variant.name, *(f"{statistics.mean(one):+.2f} ±{(max(one) - min(one)) / 2:.2f}" for one in by_cell))
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, help="folder with mooncake_conversation.jsonl and azure_2023_conv.csv, .zst or not")
    parser.add_argument("--cell", default="", help="only cells whose name contains this")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help="half of the requests, one seed")
    given = parser.parse_args()
    seeds, share = ((100,), 0.5) if given.quick else ((100, 101, 102), 1.0)
    known = [cell for cell in (CONVERSATION, DIVIDED, *CELLS) if given.cell in cell.name]
    cells = [cell for cell in known if not cell.trace or trace_for(cell, given.traces)]
    if not cells:
        print(f"cell is {given.cell!r}; allowed: part of one of {', '.join(BY_NAME)} (those of a trace need --traces)")
        return 2
    variants = (SHIPS, *WITHOUT, *WRONG)
    found: dict[tuple[str, str], list[Summary]] = {}
    with replays(given.jobs) as run:
        for cell in cells:
            wanted = [one for variant in variants for one in variant.runs(cell, seeds, share, trace_for(cell, given.traces))]
            measured = run.measure_all(cell.name, wanted)
            for at, variant in enumerate(variants):
                found[cell.name, variant.name] = measured[at * len(seeds) : (at + 1) * len(seeds)]
            run.say(f"{cell.name}: done")
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table("Points of goodput without an ingredient (mean ± half the range of the seeds)", cells, WITHOUT, found))
    console.print(table("Points of goodput with wrong or stale knowledge", cells, WRONG, found))
    RESULTS.mkdir(exist_ok=True)
    kept = [{"cell": cell, "variant": name, "goodput": [one.goodput_ratio for one in rows]} for (cell, name), rows in found.items()]
    (RESULTS / "ablation.json").write_text(json.dumps(kept, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
