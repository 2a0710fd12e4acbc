"""CPU a unary request costs the router, by policy and body size; latency at a fixed rate beside it.

`python -m benchmarks.router_unary`. Method: docs/benchmarks.md.
"""

import http.client
import statistics
import sys
from contextlib import ExitStack
from typing import NamedTuple
from urllib.parse import urlsplit

from benchmarks.bodies import API_KEY, chat_body
from benchmarks.cpu import cpu_of
from benchmarks.load import closed_loop, open_loop
from benchmarks.router_process import Running, router
from benchmarks.table import Row, keep, show

RUNS = 5
RUN_S = 4.0
CONNECTIONS = 64
OPEN_LOOP_RATE = 2000.0


class Case(NamedTuple):
    """One row to measure; `held` streams stay open on every worker, so that the policy has beliefs to weigh."""

    name: str
    policy: str
    workers: int
    body_bytes: int
    goal_us: float
    held: int = 0


CASES = (
    Case("unary 4 KB, prefix-affinity", "prefix-affinity", 4, 4096, 40.0),
    Case("unary 4 KB, target-misses", "target-misses", 8, 4096, 50.0, held=16),
    Case("unary 64 KB, prefix-affinity", "prefix-affinity", 4, 65_536, 180.0),
    Case("unary 64 KB, target-misses", "target-misses", 8, 65_536, 180.0, held=16),
)


def hold_streams(stack: ExitStack, url: str, count: int) -> None:
    """Open streams that hardly ever write, and keep them open until the stack ends."""
    for index in range(count):
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        stack.callback(connection.close)
        body = chat_body(4096, 1000 + index, stream=True, max_tokens=10_000, user="hold")
        headers = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        if answer.status != 200 or not answer.readline():
            raise RuntimeError(f"a held stream got {answer.status}: {answer.read(500)!r}")


def measure(case: Case, running: Running, runs: int, run_s: float) -> list[Row]:
    """CPU microseconds a request over `runs` closed-loop runs, and one open-loop run's latency."""
    closed_loop(running.url, case.body_bytes, CONNECTIONS, 2.0, running.load_cores)  # warm: caches, compiled code, connections
    samples, kernel, busy, rates = [], [], [], []
    generator = ""
    for _ in range(runs):
        before = cpu_of(running.pid)
        load = closed_loop(running.url, case.body_bytes, CONNECTIONS, run_s, running.load_cores)
        cpu = cpu_of(running.pid).since(before)
        if load.errors:
            raise RuntimeError(f"{case.name}: {load.errors} of {load.requests} requests failed")
        samples.append(cpu.total_s / load.requests * 1e6)
        kernel.append(cpu.kernel_s / load.requests * 1e6)
        busy.append(cpu.total_s / load.wall_s)
        rates.append(load.requests / load.wall_s)
        generator = load.generator
    note = (
        f"{statistics.median(kernel):.0f} µs of it kernel; router core {100 * min(busy):.0f}–{100 * max(busy):.0f} % busy, "
        f"{min(rates):,.0f}–{max(rates):,.0f}/s, {generator}"
    )
    rows = [
        Row(
            case.name,
            "µs CPU",
            tuple(samples),
            case.goal_us,
            note,
            {"busy": min(busy), "requests_per_s": max(rates), "kernel_us": statistics.median(kernel)},
        )
    ]
    if case.body_bytes <= 4096:
        paced = open_loop(running.url, case.body_bytes, CONNECTIONS, run_s, running.load_cores, OPEN_LOOP_RATE)
        note = f"p99 {paced.p99_ms:.2f} ms, {paced.errors} errors, from the due time at {OPEN_LOOP_RATE:,.0f}/s"
        rows.append(Row(f"{case.name}: latency", "ms p50", (paced.p50_ms,), None, note, {"p99_ms": paced.p99_ms}))
    return rows


def run(runs: int = RUNS, run_s: float = RUN_S, *, by_hand: bool = False) -> list[Row]:
    """All cases."""
    rows: list[Row] = []
    for case in CASES:
        with ExitStack() as stack:
            running = stack.enter_context(router(case.policy, case.workers, by_hand=by_hand))
            hold_streams(stack, running.url, case.held * case.workers)
            rows += measure(case, running, runs, run_s)
    return rows


def main() -> None:
    by_hand = "--by-hand" in sys.argv
    rows = run(2, 1.0, by_hand=by_hand) if "--quick" in sys.argv else run(by_hand=by_hand)
    show("Router, unary: CPU of router and children", rows)
    print(keep("router_unary", rows))


if __name__ == "__main__":
    main()
