"""What several routers lose against one, by what they know of one another's bookings. Simulated.

`python -m benchmarks.replicas --trace mooncake_conversation.jsonl.zst [--quick]`: the conversation hour ×3, arrivals spread, 8 workers,
2 s / 25 ms. The figure to reach: 4 routers with news 50 ms old ≥ 98.3 %. It decides how replicas are built (docs/decisions).
"""

import argparse
import json
import sys
from pathlib import Path

from penstock_simulator.report import Summary
from penstock_simulator.setup import Bookings
from rich.console import Console
from rich.table import Table

from benchmarks.cells import CONVERSATION
from benchmarks.replays import Run, replays, spread
from benchmarks.table import RESULTS

MUST = 98.3
POLICIES = ("target-misses", "lmetric", "block-cost:32")
Row = tuple[str, int, Bookings, float]
"""Policy, routers, what they know of one another, and its age in ms."""


def rows(quick: bool) -> list[Row]:
    """One router; 2, 4 and 8 with news 50 ms old and what else there is; 4 with older and newer news; other policies with 4."""
    ours = POLICIES[0]
    found: list[Row] = [(ours, 1, Bookings.NONE, 0.0)]
    found += [(ours, many, known, 50.0) for many in ((4,) if quick else (2, 4, 8)) for known in Bookings]
    found += [
        (ours, 4, known, age) for age in ((200.0,) if quick else (10.0, 100.0, 200.0, 500.0)) for known in Bookings if known != "none"
    ]
    if not quick:
        found += [
            (policy, *how)
            for policy in POLICIES[1:]
            for how in ((1, Bookings.NONE, 0.0), (4, Bookings.NONE, 50.0), (4, Bookings.HEARD, 50.0))
        ]
    return found


def runs(row: Row, seeds: tuple[int, ...], share: float, trace: Path) -> list[Run]:
    policy, many, known, age_ms = row
    changed = {"routers": many, "bookings": known, "exchange_s": age_ms / 1e3}
    return [
        Run(cell=CONVERSATION.name, policy=policy, load=CONVERSATION.load, seed=seed, share=share, trace=trace, changed=changed)
        for seed in seeds
    ]


def table(measured: list[tuple[Row, list[Summary]]]) -> Table:
    shown = Table(
        title="Conversation ×3, arrivals spread, 8 workers, 2 s / 25 ms; mean ± half the range of the seeds", title_justify="left"
    )
    for heading in ("policy", "routers", "bookings", "age ms", "goodput %", "mean TTFT ms", "p99 TPOT ms", "hits %", "must"):
        shown.add_column(heading, justify="left" if heading in ("policy", "bookings") else "right")
    for (policy, many, known, age_ms), found in measured:
        goodput = [100.0 * one.goodput_ratio for one in found]
        judged = policy == POLICIES[0] and many == 4 and age_ms == 50.0 and known != "none"
        reached = sum(goodput) / len(goodput) >= MUST
        shown.add_row(
            policy, str(many), "–" if many == 1 else known.value, "–" if many == 1 or known == "none" else f"{age_ms:g}",
            spread(goodput),
            spread([1e3 * (one.ttft_s.mean or 0.0) for one in found]),
            spread([1e3 * (one.tpot_s.p99 or 0.0) for one in found]),
            spread([100.0 * one.hit_ratio for one in found]),
            "" if not judged else f"≥ {MUST} " + ("[green]reached" if reached else "[red]missed"),
        )  # fmt: skip
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, help="mooncake_conversation.jsonl, .zst or not")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help="a third of the trace, one seed, fewer rows")
    given = parser.parse_args()
    if given.trace is None:
        print("needs --trace mooncake_conversation.jsonl[.zst]; it is not part of the project (github.com/kvcache-ai/Mooncake)")
        return 0
    seeds = (0,) if given.quick else (0, 1, 2)
    wanted = rows(given.quick)
    with replays(given.jobs) as run:
        all_runs = [one for row in wanted for one in runs(row, seeds, 1 / 3 if given.quick else 1.0, given.trace)]
        found = run.measure_all("replicas", all_runs)
    measured = [(row, found[at * len(seeds) : (at + 1) * len(seeds)]) for at, row in enumerate(wanted)]
    Console(width=None if sys.stdout.isatty() else 160).print(table(measured))
    RESULTS.mkdir(exist_ok=True)
    kept = [
        {"policy": policy, "routers": many, "bookings": known.value, "age_ms": age, "goodput": [one.goodput_ratio for one in found]}
        for (policy, many, known, age), found in measured
    ]
    (RESULTS / "replicas.json").write_text(json.dumps(kept, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
