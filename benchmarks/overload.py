"""Overload in virtual time: goodput over load with and without admission, and what nine light tenants get beside a heavy one.

`python -m benchmarks.overload [--trace mooncake_conversation.jsonl.zst] [--quick]`. Without a trace: Poisson traffic of long prompts.
Capacity is the load at which goodput without admission is highest; judged at 1.5 times that, against the highest goodput at any
load up to it, with or without admission. Beyond it goodput with admission may go on rising: of more requests the line can choose more
that are cheap to serve, those with cached prompts first of all. Production scheduler and line, three seeds.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from penstock_core.errors import Outcome
from penstock_core.slo import Slo
from penstock_router.admission.claim import Claim, LineLimits
from penstock_simulator.cluster import replay
from penstock_simulator.generate import Traffic, generate
from penstock_simulator.report import summarise
from penstock_simulator.setup import Setup, same_workers
from penstock_simulator.traces import read_trace
from penstock_simulator.workload import Workload

from benchmarks.table import Row, keep, show

SLO = Slo(2.0, 0.025)
FLEETS = {"4": same_workers(4), "3P2D": same_workers(prefill=3, decode=2)}
BASES = {"4": 9.0, "3P2D": 13.0}
"""Requests a second about which capacity lies."""
LOADS = (0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5)
MOST_SHORT = 0.05


def made_up(requests: int, seed: int) -> Workload:
    """Conversations' lengths (long prompts, middling answers) at one request a second, for `at_speed`."""
    return generate(Traffic(kind="poisson", requests=requests, rate=1.0, prompt_tokens=6_000, output_tokens=250, seed=seed))


def good_per_s(workload: Workload, fleet: str, seed: int, admission: LineLimits | None) -> float:
    """Requests a second that met both targets, while requests came."""
    one = summarise(replay(workload, Setup(workers=FLEETS[fleet], slo=SLO, seed=seed, admission=admission)))
    return one.goodput_ratio * one.rate


def overload_rows(workloads: Sequence[Workload], fleet: str, base: float) -> tuple[list[Row], float]:
    """Goodput at 1.5 × capacity beside the peak, with admission and without; and the last workload's capacity in requests a second."""
    capacity = 0.0
    found: dict[str, list[float]] = {"peak without": [], "peak with": [], "short": [], "with": [], "without": []}
    for seed, workload in enumerate(workloads):
        loads = [workload.at_speed(base * load) for load in LOADS]
        without = [good_per_s(load, fleet, seed, None) for load in loads]
        admitted = [good_per_s(load, fleet, seed, LineLimits()) for load in loads]
        capacity = base * LOADS[without.index(max(without))]
        over = workload.at_speed(1.5 * capacity)
        found["peak without"].append(max(without))
        found["peak with"].append(max(admitted))
        found["with"].append(good_per_s(over, fleet, seed, LineLimits()))
        found["without"].append(good_per_s(over, fleet, seed, None))
        up_to = [good for load, good in zip(LOADS, admitted, strict=True) if base * load <= 1.5 * capacity]
        found["short"].append(max(0.0, 1.0 - found["with"][-1] / max(*without, *up_to)))
    rate = "requests/s"
    return [
        Row(f"{fleet}: peak goodput at any load, without admission", rate, tuple(found["peak without"])),
        Row(f"{fleet}: peak goodput at any load, with admission", rate, tuple(found["peak with"])),
        Row(f"{fleet}: goodput at 1.5 × capacity, without", rate, tuple(found["without"])),
        Row(f"{fleet}: goodput at 1.5 × capacity, with admission", rate, tuple(found["with"])),
        Row(f"{fleet}: the same, short of the highest up to there by", "ratio", tuple(found["short"]), MOST_SHORT),
    ], capacity


def tenant_rows(requests: int, fleet: str, load: float, seeds: int) -> list[Row]:
    """Half of the load is one tenant's, the rest nine others': who is served how much."""
    light_served, heavy_served, spread = [], [], []
    for seed in range(seeds):
        workload = made_up(requests, seed).at_speed(load)
        names = ["heavy" if i % 2 else f"light{i // 2 % 9}" for i in range(workload.requests)]
        result = replay(workload, Setup(workers=FLEETS[fleet], slo=SLO, seed=seed, admission=LineLimits(), claims=tuple(map(Claim, names))))
        ok = np.array([outcome is Outcome.OK for outcome in result.outcomes])
        of = np.array(names)
        shares = [float(ok[of == name].mean()) for name in sorted(set(names) - {"heavy"})]
        light_served.append(statistics.fmean(shares))
        spread.append(max(shares) - min(shares))
        heavy_served.append(float(ok[of == "heavy"].mean()))
    return [
        Row(f"{fleet}: share of nine light tenants' requests served", "ratio", tuple(light_served)),
        Row(f"{fleet}: between the best and the worst served of the nine", "ratio", tuple(spread)),
        Row(f"{fleet}: share of the heavy tenant's requests served", "ratio", tuple(heavy_served)),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, help="Mooncake-style trace; none: made-up traffic.")
    parser.add_argument("--quick", action="store_true", help="Fewer requests, one seed.")
    given = parser.parse_args()
    requests, seeds = (1_500, 1) if given.quick else (2_000, 3)
    rows: list[Row] = []
    for fleet in FLEETS:
        if given.trace is None:
            workloads, base = [made_up(requests, seed) for seed in range(seeds)], BASES[fleet]
        else:
            trace = read_trace(given.trace)
            workloads, base = [trace.first(requests * (seed + 1)).spread() for seed in range(seeds)], 2.5
        measured, capacity = overload_rows(workloads, fleet, base)
        rows += measured
        if given.trace is None:
            rows += tenant_rows(requests, fleet, 1.5 * capacity, seeds)
        sys.stderr.write(f"{fleet}: done\n")
    show("Overload", rows)
    print(keep("overload", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
