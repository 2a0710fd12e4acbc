"""Load for unary requests: `wrk` where it is on the PATH, else our own processes of asyncio protocols. One JSON result each.

`python -m benchmarks.load --url http://127.0.0.1:8000 …` runs one generator process; `closed_loop` and `open_loop` start
them. Closed loop: every connection sends its next request when the answer is there (CPU figures). Open loop: requests are
due at fixed times and their latency counts from then, whether or not a connection was free (latency figures).
"""

import argparse
import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from penstock_dataplane.loop import run as run_loop

from benchmarks.bodies import API_KEY, BODIES, chat_body, http_request


@dataclass(frozen=True)
class Load:
    """What a run did: `errors` are answers other than 200 and lost connections."""

    generator: str
    requests: int
    errors: int
    wall_s: float
    p50_ms: float
    p99_ms: float


def closed_loop(url: str, body_bytes: int, connections: int, wall_s: float, cores: Sequence[int]) -> Load:
    """Keep `connections` requests under way for `wall_s` seconds from the given cores."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return _own(url, body_bytes, connections, wall_s, cores, rate=0.0)
    with tempfile.TemporaryDirectory() as folder:
        script = _wrk_script(Path(folder), body_bytes)
        threads = min(2, len(cores), connections)
        command = [wrk, f"-t{threads}", f"-c{connections}", f"-d{wall_s:g}s", "--latency", "-s", str(script), url]
        return _parse_wrk(subprocess.run(pinned(cores, command), capture_output=True, text=True, check=True).stdout)


def open_loop(url: str, body_bytes: int, connections: int, wall_s: float, cores: Sequence[int], rate: float) -> Load:
    """`rate` requests a second, due evenly."""
    return _own(url, body_bytes, connections, wall_s, cores, rate)


def pinned(cores: Sequence[int], command: list[str]) -> list[str]:
    """The command on the given cores, where taskset is installed."""
    return ["taskset", "-c", ",".join(map(str, cores)), *command] if shutil.which("taskset") else command


def _wrk_script(folder: Path, body_bytes: int) -> Path:
    for index in range(BODIES):
        (folder / f"{index}").write_bytes(chat_body(body_bytes, index))
    script = folder / "post.lua"
    script.write_text(
        f"""local requests, turn = {{}}, 0
function init(args)
  for i = 0, {BODIES - 1} do
    local file = io.open("{folder}/" .. i, "rb")
    requests[i] = wrk.format("POST", "/v1/chat/completions",
      {{["content-type"] = "application/json", ["authorization"] = "Bearer {API_KEY}"}}, file:read("*a"))
    file:close()
  end
end
function request()
  turn = (turn + 1) % {BODIES}
  return requests[turn]
end
"""
    )
    return script


def _parse_wrk(said: str) -> Load:
    done = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", said)
    if done is None:
        raise ValueError(f"wrk said: {said!r}")
    wall_s = float(done[2]) * {"ms": 1e-3, "s": 1.0, "m": 60.0}[done[3]]
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    lost = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    errors = int(bad[1]) if bad else 0
    errors += sum(map(int, lost.groups())) if lost else 0
    return Load("wrk", int(done[1]), errors, wall_s, _percentile(said, "50%"), _percentile(said, "99%"))


def _percentile(said: str, which: str) -> float:
    found = re.search(rf"\s{which}\s+([\d.]+)(us|ms|s)", said)
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]] if found else 0.0


def _own(url: str, body_bytes: int, connections: int, wall_s: float, cores: Sequence[int], rate: float) -> Load:
    processes = min(2, len(cores))
    common = ["--url", url, "--body-bytes", str(body_bytes), "--connections", str(connections // processes), "--wall-s", str(wall_s)]
    command = [sys.executable, "-m", "benchmarks.load", *common, "--rate", str(rate / processes)]
    running = [subprocess.Popen(pinned(cores, command), stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    loads = [Load(**json.loads(process.communicate(timeout=wall_s + 60)[0])) for process in running]
    return Load(
        loads[0].generator,
        sum(load.requests for load in loads),
        sum(load.errors for load in loads),
        max(load.wall_s for load in loads),
        max(load.p50_ms for load in loads),
        max(load.p99_ms for load in loads),
    )


class _Run:
    """One generator process: what is sent, what came back."""

    def __init__(self, host: str, body_bytes: int) -> None:
        self.requests = [http_request(chat_body(body_bytes, index), host) for index in range(BODIES)]
        self.sent = 0
        self.errors = 0
        self.latencies_s: list[float] = []
        self.stopped = False
        self.open_loop = False
        self.due: deque[float] = deque()
        self.idle: list[_Connection] = []

    def next_request(self) -> bytes:
        self.sent += 1
        return self.requests[self.sent % BODIES]

    def ready(self, connection: "_Connection", now: float) -> None:
        """A connection can send: at once in a closed loop, else when a request is due."""
        if self.stopped:
            return
        if not self.open_loop:
            connection.send(now)
        elif self.due:
            connection.send(self.due.popleft())
        else:
            self.idle.append(connection)


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run) -> None:
        self.run = run
        self.buffer = b""
        self.since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.run.ready(self, time.perf_counter())

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.run.stopped:
            self.run.errors += 1

    def send(self, since: float) -> None:
        self.since = since
        self.transport.write(self.run.next_request())

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0 or not _whole(self.buffer, head_end):
            return
        now = time.perf_counter()
        self.run.latencies_s.append(now - self.since)
        if not self.buffer.startswith(b"HTTP/1.1 200"):
            self.run.errors += 1
        self.buffer = b""
        self.run.ready(self, now)


def _whole(answer: bytes, head_end: int) -> bool:
    """Whether the answer is complete: by its content-length, or by the last chunk."""
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", answer[: head_end + 2])
    return len(answer) >= head_end + 4 + int(found[1]) if found else answer.endswith(b"0\r\n\r\n")


async def _generate(url: str, body_bytes: int, connections: int, wall_s: float, rate: float) -> Load:
    parts, loop = urlsplit(url), asyncio.get_running_loop()
    run = _Run(parts.netloc, body_bytes)
    run.open_loop = rate > 0
    began = time.perf_counter()
    opened = [await loop.create_connection(lambda: _Connection(run), parts.hostname, parts.port) for _ in range(connections)]
    if run.open_loop:
        await _make_due(run, rate, wall_s)
    else:
        await asyncio.sleep(wall_s)
    run.stopped = True
    took_s = time.perf_counter() - began
    for transport, _ in opened:
        transport.close()
    ordered = sorted(run.latencies_s) or [0.0]
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    return Load("python", len(run.latencies_s), run.errors, took_s, p50 * 1e3, p99 * 1e3)


async def _make_due(run: _Run, rate: float, wall_s: float) -> None:
    """Make a request due every 1/rate seconds; those the loop woke too late for are due at their own time all the same."""
    began, made = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < wall_s:
        while made < elapsed * rate:
            due = began + made / rate
            made += 1
            if run.idle:
                run.idle.pop().send(due)
            else:
                run.due.append(due)
        await asyncio.sleep(max(0.0, made / rate - (time.perf_counter() - began)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--body-bytes", type=int, default=4096)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--wall-s", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=0.0)
    given = parser.parse_args()
    print(json.dumps(asdict(run_loop(_generate(given.url, given.body_bytes, given.connections, given.wall_s, given.rate)))))


if __name__ == "__main__":
    main()
