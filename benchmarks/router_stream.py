"""CPU an SSE chunk costs the router with 256 streams, phases spread and in step, and the delay it adds.

`python -m benchmarks.router_stream`. The added delay is the delay through the router less the delay of the same streams
straight from one mock worker process, measured in the same way right before. Method: docs/benchmarks.md.
"""

import json
import statistics
import subprocess
import sys

from benchmarks.cpu import resident_bytes
from benchmarks.load import pinned
from benchmarks.router_process import Running, router
from benchmarks.table import Row, keep, show

STREAMS = 256
WINDOWS = 5
WINDOW_S = 3.0


def load(running: Running, url: str, windows: int, window_s: float) -> dict[str, list[float]]:
    """One run of the stream client against `url`; gives a list of the windows' values for each figure."""
    options = ["--streams", str(STREAMS), "--windows", str(windows), "--window-s", str(window_s), "--pid", str(running.pid)]
    command = [sys.executable, "-m", "benchmarks.stream_load", "--url", url, *options]
    said = json.loads(subprocess.run(pinned(running.load_cores, command), capture_output=True, text=True, check=True).stdout)
    if said["refused"]:
        raise RuntimeError(f"{said['refused']} of {STREAMS} streams were not answered with 200")
    return {name: [window[name] for window in said["windows"]] for name in said["windows"][0]}


def measure(
    name: str, goal_us: float | None, goal_ms: float | None, mock_options: list[str], windows: int, window_s: float, by_hand: bool
) -> list[Row]:
    """The rows of one way of pacing."""
    with router("target-misses", 4, mock_options, by_hand=by_hand) as running:
        direct = load(running, running.mock_url, windows, window_s)
        through = load(running, running.url, windows, window_s)
        memory = resident_bytes(running.pid) / 1e6
    expected = STREAMS * 100 * window_s
    worst = max(through["longest_gap_s"])
    kernel_us = statistics.median(through["kernel_us_a_chunk"])
    on_time = min(through["chunks"]) / expected
    note = f"{kernel_us:.1f} µs of it kernel; {on_time:.1%} of the chunks on time, longest gap {worst * 1e3:.0f} ms, {memory:.0f} MB"
    rows = [Row(f"{STREAMS} streams, {name}", "µs CPU a chunk", tuple(through["cpu_us_a_chunk"]), goal_us, note)]
    for which, goal in (("p50_ms", goal_ms), ("p99_ms", None)):
        added = tuple(via - less for via, less in zip(through[which], direct[which], strict=True))
        straight = f"straight from the mock {min(direct[which]):.2f}–{max(direct[which]):.2f} ms"
        rows.append(Row(f"{STREAMS} streams, {name}: added {which[:3]}", "ms", added, goal, straight))
    return rows


def run(windows: int = WINDOWS, window_s: float = WINDOW_S, *, by_hand: bool = False) -> list[Row]:
    """Spread, then in step (reported beside it, without a figure to reach)."""
    rows = measure("phases spread", 13.0, 0.2, [], windows, window_s, by_hand)
    return rows + measure("in step", None, None, ["--in-step"], windows, window_s, by_hand)


def main() -> None:
    by_hand = "--by-hand" in sys.argv
    rows = run(2, 1.0, by_hand=by_hand) if "--quick" in sys.argv else run(by_hand=by_hand)
    show("Router, streams: a chunk every 10 ms each", rows)
    print(keep("router_stream", rows))


if __name__ == "__main__":
    main()
