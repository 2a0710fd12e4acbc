"""CPU cost of the data plane alone: a proxy (server + client) between a load generator and a mock upstream.

    python benchmarks/dataplane_micro.py [--rounds 5] [--seconds 4] [--chunks-per-second 100]

Prints µs of CPU per unary request (4 KB body, 64 keep-alive connections, `wrk`) and per relayed SSE chunk (256 streams), the
proxy's own CPU from /proc/<pid>/stat, median and spread of the rounds; writes JSON to benchmarks/results/. Not a test.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from penstock_dataplane.client import Client, Origin
from penstock_dataplane.loop import run
from penstock_dataplane.relay import relay
from penstock_dataplane.server import Exchange, Server

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
ANSWER = b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"message":{"role":"assistant","content":"' + b"x" * 400 + b'"}}]}'
JSON_TYPE = [(b"content-type", b"application/json")]
SSE_TYPE = [(b"content-type", b"text/event-stream")]


async def mock_upstream(chunks: int, interval_s: float) -> None:
    """Answers `/v1/stream` with `chunks` events, one every `interval_s`; anything else with ANSWER."""
    loop = asyncio.get_running_loop()

    async def handle(exchange: Exchange) -> None:
        if exchange.request.path != "/v1/stream":
            exchange.respond(200, JSON_TYPE, ANSWER)
            return
        exchange.start(200, SSE_TYPE)
        done = loop.create_future()
        exchange.on_disconnect(lambda: done.done() or done.set_result(None))
        started_s = loop.time()

        def tick(number: int) -> None:
            if exchange.gone or done.done():
                return
            exchange.write(EVENT)
            if number == chunks:
                exchange.finish()
                done.set_result(None)
            else:
                loop.call_at(started_s + number * interval_s, tick, number + 1)

        tick(1)
        await done

    server = Server(handle)
    _, port = await server.start()
    print(port, flush=True)
    await asyncio.Event().wait()


class CountingTap:
    """The least a router does with a chunk: count it and note when it came."""

    __slots__ = ("chunks", "last_s", "response")

    def __init__(self, response: object) -> None:
        self.response = response
        self.chunks = 0
        self.last_s = 0.0

    def on_chunk(self, data: bytes) -> bytes:
        self.chunks += 1
        self.last_s = self.response.received_s  # type: ignore[attr-defined]
        return data


async def proxy(upstream_port: int) -> None:
    """Sends every request on to the upstream and relays what comes back."""
    loop = asyncio.get_running_loop()
    client = Client()
    origin = Origin("http", "127.0.0.1", upstream_port)

    async def handle(exchange: Exchange) -> None:
        request = exchange.request
        response = await client.request(origin, request.method, request.path, JSON_TYPE, request.body, deadline_s=loop.time() + 600)
        if response.header(b"content-type") == b"text/event-stream":
            exchange.start(response.status, SSE_TYPE)
            await relay(response, exchange, CountingTap(response))
        else:
            exchange.respond(response.status, JSON_TYPE, await response.read())

    server = Server(handle)
    _, port = await server.start()
    print(port, flush=True)
    await asyncio.Event().wait()


async def drink(port: int, streams: int, spread_s: float) -> None:
    """Opens `streams` SSE requests, phases spread over `spread_s`, and prints the bytes received."""
    request = b"POST /v1/stream HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"

    class Drinker(asyncio.Protocol):
        def __init__(self) -> None:
            self.done = asyncio.get_running_loop().create_future()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(request)  # type: ignore[attr-defined]

        def data_received(self, data: bytes) -> None:
            if data.endswith(b"0\r\n\r\n") and not self.done.done():
                self.done.set_result(None)

    loop = asyncio.get_running_loop()
    drinkers = []
    for _ in range(streams):
        _, drinker = await loop.create_connection(Drinker, "127.0.0.1", port)
        drinkers.append(drinker)
        await asyncio.sleep(spread_s / streams)
    await asyncio.gather(*(drinker.done for drinker in drinkers))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def start(cpu: str, *args: str) -> tuple[subprocess.Popen[str], int]:
    pin = ["taskset", "-c", cpu] if shutil.which("taskset") else []
    process = subprocess.Popen([*pin, sys.executable, __file__, *args], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def unary_round(proxy_pid: int, port: int, seconds: float, script: str) -> tuple[float, int]:
    """µs of CPU a request, and the requests."""
    before_s = cpu_s(proxy_pid)
    pin = ["taskset", "-c", "1"] if shutil.which("taskset") else []
    command = [*pin, "wrk", "-t1", "-c64", f"-d{seconds:g}s", "-s", script, f"http://127.0.0.1:{port}/v1/chat/completions"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used_s = cpu_s(proxy_pid) - before_s
    requests = next(int(line.split()[0]) for line in output.splitlines() if " requests in " in line)
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(output)
    return used_s / requests * 1e6, requests


def stream_round(proxy_pid: int, port: int, streams: int, chunks: int, spread_s: float) -> float:
    """µs of CPU a chunk, the streams' own set-up included."""
    before_s = cpu_s(proxy_pid)
    pin = ["taskset", "-c", "1"] if shutil.which("taskset") else []
    subprocess.run([*pin, sys.executable, __file__, "drink", str(port), str(streams), str(spread_s)], check=True)
    return (cpu_s(proxy_pid) - before_s) / (streams * chunks) * 1e6


def summary(values: list[float]) -> str:
    return f"{statistics.median(values):6.1f}  ({min(values):.1f} to {max(values):.1f}, n={len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--interval-ms", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".lua", delete=False) as script:
        script.write('wrk.method="POST"\nwrk.headers["Content-Type"]="application/json"\nwrk.body=string.rep("x",4096)\n')
    upstream, upstream_port = start("2", "upstream", str(options.chunks), str(options.interval_ms / 1000))
    proxying, port = start("0", "proxy", str(upstream_port))
    try:
        unary_round(proxying.pid, port, 1, script.name)
        unary, spread, in_step = [], [], []
        for _ in range(options.rounds):
            unary.append(unary_round(proxying.pid, port, options.seconds, script.name)[0])
            spread.append(stream_round(proxying.pid, port, options.streams, options.chunks, 10 * options.interval_ms / 1000 + 0.0037))
            in_step.append(stream_round(proxying.pid, port, options.streams, options.chunks, 0.0))
    finally:
        for process in (proxying, upstream):
            process.terminate()
            process.wait()
        Path(script.name).unlink()
    print(f"unary, 4 KB, 64 connections    µs CPU a request  {summary(unary)}")
    print(f"stream, {options.streams} streams, spread     µs CPU a chunk    {summary(spread)}")
    print(f"stream, {options.streams} streams, opened at once µs CPU a chunk {summary(in_step)}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    report = {"at": time.time(), "unary_us": unary, "chunk_spread_us": spread, "chunk_together_us": in_step}
    (results / "dataplane_micro.json").write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["upstream", chunks, interval_s]:
            run(mock_upstream(int(chunks), float(interval_s)))
        case ["proxy", upstream_port]:
            run(proxy(int(upstream_port)))
        case ["drink", port, streams, spread_s]:
            run(drink(int(port), int(streams), float(spread_s)))
        case _:
            main()
