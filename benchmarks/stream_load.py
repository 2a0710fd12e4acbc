"""Many SSE streams at once against a router or straight against a mock worker; measures delay and CPU in windows.

Run as `python -m benchmarks.stream_load --url … --streams 256 --pid ROUTER_PID`; prints JSON. The chunk's own time stamp
(monotonic nanoseconds, written by the mock worker) against the time it was read here is its delay.
"""

import argparse
import asyncio
import json
import re
import time
from functools import partial
from urllib.parse import urlsplit

from penstock_dataplane.loop import run as run_loop

from benchmarks.bodies import chat_body, http_request
from benchmarks.cpu import cpu_of
from benchmarks.mock_worker import STAMP_DIGITS

_MARK = b'"content":"'
_STAMP = re.compile(rb'"content":"(\d{%d})"' % STAMP_DIGITS)


class Stream(asyncio.Protocol):
    """One connection with one stream."""

    def __init__(self, request: bytes, delays_ns: list[int]) -> None:
        self.request = request
        self.delays_ns = delays_ns
        self.kept = b""
        self.status = b""
        self.done = False
        self.longest_gap_ns = 0
        self.last_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self.status:
            self.status = data[9:12]
        if self.kept:
            data = self.kept + data
        end = 0
        for found in _STAMP.finditer(data):
            self.delays_ns.append(now - int(found[1]))
            end = found.end()
        if end:
            if self.last_ns:
                self.longest_gap_ns = max(self.longest_gap_ns, now - self.last_ns)
            self.last_ns = now
        if data.endswith(b"0\r\n\r\n"):
            self.done = True
        cut = data.rfind(b"data:", end)
        self.kept = data[cut:] if cut >= 0 and _MARK in data[cut:] + _MARK and len(data) - cut < 400 else b""


async def run(url: str, streams: int, windows: int, window_s: float, pid: int, chunks_per_s: float) -> dict[str, object]:
    """Open the streams over one second, let them settle, then measure `windows` windows."""
    parts, loop = urlsplit(url), asyncio.get_running_loop()
    delays_ns: list[int] = []
    tokens = int((windows * window_s + 6.0) * chunks_per_s)
    opened: list[Stream] = []
    for index in range(streams):
        request = http_request(chat_body(1024, index, stream=True, max_tokens=tokens), parts.netloc)
        _, stream = await loop.create_connection(partial(Stream, request, delays_ns), parts.hostname, parts.port)
        opened.append(stream)
        await asyncio.sleep(1.0 / streams)
    await asyncio.sleep(1.5)
    measured = []
    for _ in range(windows):
        for stream in opened:
            stream.longest_gap_ns = 0
        delays_ns.clear()
        cpu_before, began = cpu_of(pid), time.monotonic()
        await asyncio.sleep(window_s)
        cpu, wall_s, seen = cpu_of(pid).since(cpu_before), time.monotonic() - began, sorted(delays_ns)
        measured.append(
            {
                "chunks": len(seen),
                "wall_s": wall_s,
                "cpu_us_a_chunk": cpu.total_s / max(1, len(seen)) * 1e6,
                "kernel_us_a_chunk": cpu.kernel_s / max(1, len(seen)) * 1e6,
                "p50_ms": seen[len(seen) // 2] / 1e6 if seen else 0.0,
                "p99_ms": seen[int(len(seen) * 0.99)] / 1e6 if seen else 0.0,
                "longest_gap_s": max(stream.longest_gap_ns for stream in opened) / 1e9,
            }
        )
    refused = sum(stream.status != b"200" for stream in opened)
    for stream in opened:
        stream.transport.close()
    return {"windows": measured, "refused": refused, "streams": streams}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--window-s", type=float, default=3.0)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--chunks-per-s", type=float, default=100.0)
    given = parser.parse_args()
    print(json.dumps(run_loop(run(given.url, given.streams, given.windows, given.window_s, given.pid, given.chunks_per_s))))


if __name__ == "__main__":
    main()
