"""Do policies rank on the real stack as they do in the simulator?

`python -m benchmarks.ranking_real [--quick]`: the same requests through `penstock up --speed 0.5 --policy P` for several policies (real
router, real `sim` workers, wall clock) and through replays. Half speed, so that the machine's own delays count for less. By mean TTFT, the
order must be the same; policies that the simulator puts within 5 % of one another may change places.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from pathlib import Path

from penstock_simulator.cluster import replay
from penstock_simulator.report import summarise
from penstock_simulator.setup import Setup, mixed_workers
from rich.console import Console
from rich.table import Table

from benchmarks.pd import up
from benchmarks.simulator_real import Shape, as_workload, drive, requests
from benchmarks.table import Row, keep

POLICIES = ("target-misses", "prefix-affinity", "least-request", "random")
SPEED, WORKERS, REQUESTS = 0.5, 3, 400
SHAPE = Shape(rate=8.0, prefixes=50, prefix_bytes=24_000, question_bytes=3_000)
NEAR = 0.05


def real(policy: str, count: int) -> tuple[list[float], float]:
    """TTFT in ms of every request on the real stack, and how busy the machine was."""
    sent = requests(0, count, SHAPE)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        options = ("--prefill", "0", "--decode", "0", "--both", str(WORKERS), "--speed", str(SPEED), "--policy", policy)
        with up(Path(folder) / "data", *options) as url:
            asyncio.run(drive(url, requests(1, 20)))  # warms connections, code and tables
            busy = asyncio.run(drive(url, sent))
    return [(one.arrivals_s[0] - one.due_s) * 1e3 for one in sent], busy


def simulated(policy: str, count: int) -> float:
    """Mean TTFT in ms."""
    workers = mixed_workers(f"{WORKERS}xpolynomial-reference@{SPEED:g}")
    found = summarise(replay(as_workload(requests(0, count, SHAPE)), Setup(workers=workers, policy=policy))).ttft_s.mean
    assert found is not None
    return found * 1e3


def swapped(real_ms: dict[str, float], simulated_ms: dict[str, float]) -> list[tuple[str, str]]:
    """Pairs in another order on the real stack than in the simulator, where that sees a difference."""
    return [(a, b) for a in real_ms for b in real_ms if simulated_ms[a] < simulated_ms[b] * (1.0 - NEAR) and real_ms[a] > real_ms[b]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="150 requests a policy instead of 400")
    count = 150 if parser.parse_args().quick else REQUESTS
    rows, real_ms, simulated_ms = [], {}, {}
    for policy in POLICIES:
        sys.stderr.write(f"{policy}: {count} requests, about {count / SHAPE.rate + 20:.0f} s\n")
        ttft_ms, busy = real(policy, count)
        real_ms[policy], simulated_ms[policy] = statistics.mean(ttft_ms), simulated(policy, count)
        note = f"simulated {simulated_ms[policy]:.0f} ms; machine {busy:.0%} busy"
        rows.append(Row(f"mean TTFT, {policy}", "ms", (real_ms[policy],), note=note))
    wrong = swapped(real_ms, simulated_ms)
    rows.append(Row("pairs in another order than simulated", "", (float(len(wrong)),), 0.0, "; ".join(f"{a}, {b}" for a, b in wrong)))
    shown = Table(
        title=f"Policies on {WORKERS} real sim workers at speed {SPEED:g}: mean TTFT in ms, {count} requests", title_justify="left"
    )
    for heading in ("policy", "real", "simulated"):
        shown.add_column(heading, justify="left" if heading == "policy" else "right")
    for policy in sorted(POLICIES, key=simulated_ms.__getitem__):
        shown.add_row(policy, f"{real_ms[policy]:.0f}", f"{simulated_ms[policy]:.0f}")
    said = "[green]reached" if not wrong else "[red]missed: " + rows[-1].note
    shown.caption = f"Must: no pair in another order than simulated, of those more than {NEAR:.0%} apart: {said}"
    shown.caption_justify = "left"
    Console(width=110).print(shown)
    print(keep("ranking_real", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
