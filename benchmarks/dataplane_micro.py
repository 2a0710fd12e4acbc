"""CPU cost of the data plane alone: a proxy (server + client) between a load generator and a mock upstream.

    python benchmarks/dataplane_micro.py [--rounds 5] [--seconds 4] [--streams 256] [--chunks 300]

Prints µs of CPU (user and kernel) per unary request (4 KB body, 64 keep-alive connections, `wrk`) and per relayed SSE chunk (256 streams),
from /proc/<pid>/stat, median and spread of the rounds; writes JSON to benchmarks/results/. Beside it, in alternation, `splice`: protocols
that copy bytes between two sockets and know no HTTP, which is the floor of this machine for anything on this loop. Not a test.
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
from penstock_dataplane.wire import encode_headers

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
ANSWER = b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"message":{"role":"assistant","content":"' + b"x" * 400 + b'"}}]}'
JSON_TYPE = encode_headers([(b"content-type", b"application/json")])
SSE_TYPE = encode_headers([(b"content-type", b"text/event-stream")])


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


class SpliceUpstream(asyncio.Protocol):
    def __init__(self, client: asyncio.Transport) -> None:
        self.client = client

    def data_received(self, data: bytes) -> None:
        if not self.client.is_closing():
            self.client.write(data)


class SpliceClient(asyncio.Protocol):
    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.upstream: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.upstream is not None:
            self.upstream.write(data)
        else:
            self.connecting = asyncio.ensure_future(self.connect(data))

    async def connect(self, data: bytes) -> None:
        make = lambda: SpliceUpstream(self.transport)  # type: ignore[arg-type]  # noqa: E731
        self.upstream, _ = await asyncio.get_running_loop().create_connection(make, "127.0.0.1", self.upstream_port)
        self.upstream.write(data)


async def splice(upstream_port: int) -> None:
    """Copies bytes both ways, one upstream connection a client connection."""
    server = await asyncio.get_running_loop().create_server(lambda: SpliceClient(upstream_port), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
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


def cpu_s(pid: int) -> tuple[float, float]:
    """User and kernel seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICKS_PER_SECOND, int(fields[12]) / TICKS_PER_SECOND


def used_us(pid: int, before: tuple[float, float], units: int) -> dict[str, float]:
    """µs a unit since `before`."""
    user, kernel = ((now - then) / units * 1e6 for now, then in zip(cpu_s(pid), before, strict=True))
    return {"total": user + kernel, "user": user, "kernel": kernel}


def start(cpu: str, *args: str) -> tuple[subprocess.Popen[str], int]:
    pin = ["taskset", "-c", cpu] if shutil.which("taskset") else []
    process = subprocess.Popen([*pin, sys.executable, __file__, *args], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def unary_round(pid: int, port: int, seconds: float, script: str) -> dict[str, float]:
    """µs of CPU a request."""
    before = cpu_s(pid)
    pin = ["taskset", "-c", "1"] if shutil.which("taskset") else []
    command = [*pin, "wrk", "-t1", "-c64", f"-d{seconds:g}s", "-s", script, f"http://127.0.0.1:{port}/v1/chat/completions"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    requests = next(int(line.split()[0]) for line in output.splitlines() if " requests in " in line)
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(output)
    return used_us(pid, before, requests) | {"rate": requests / seconds}


def stream_round(pid: int, port: int, streams: int, chunks: int, spread_s: float) -> dict[str, float]:
    """µs of CPU a chunk, the streams' own set-up included."""
    before = cpu_s(pid)
    pin = ["taskset", "-c", "1"] if shutil.which("taskset") else []
    subprocess.run([*pin, sys.executable, __file__, "drink", str(port), str(streams), str(spread_s)], check=True)
    return used_us(pid, before, streams * chunks)


def line(name: str, rounds: list[dict[str, float]]) -> str:
    total = [each["total"] for each in rounds]
    user, kernel = (statistics.median(each[key] for each in rounds) for key in ("user", "kernel"))
    return f"{name:<34} {statistics.median(total):6.1f}  ({min(total):.1f} to {max(total):.1f})  user {user:.1f}, kernel {kernel:.1f}"


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
    proxies = {name: start("0", name, str(upstream_port)) for name in ("proxy", "splice")}
    spread_s = 10 * options.interval_ms / 1000 + 0.0037
    rounds: dict[str, list[dict[str, float]]] = {}
    try:
        for number in range(options.rounds + 1):
            for name, (process, port) in proxies.items():
                if number == 0:  # warm up
                    unary_round(process.pid, port, 1, script.name)
                    continue
                rounds.setdefault(f"unary request, {name}", []).append(unary_round(process.pid, port, options.seconds, script.name))
                stream = stream_round(process.pid, port, options.streams, options.chunks, spread_s)
                rounds.setdefault(f"chunk, phases spread, {name}", []).append(stream)
                stream = stream_round(process.pid, port, options.streams, options.chunks, 0.0)
                rounds.setdefault(f"chunk, opened at once, {name}", []).append(stream)
    finally:
        for process in (upstream, *(process for process, _ in proxies.values())):
            process.terminate()
            process.wait()
        Path(script.name).unlink()
    print("µs of CPU: median (least to most)")
    for name in sorted(rounds, reverse=True):
        print(line(name, rounds[name]))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "dataplane_micro.json").write_text(json.dumps({"at": time.time(), "rounds": rounds}, indent=2))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["upstream", chunks, interval_s]:
            run(mock_upstream(int(chunks), float(interval_s)))
        case ["proxy", upstream_port]:
            run(proxy(int(upstream_port)))
        case ["splice", upstream_port]:
            run(splice(int(upstream_port)))
        case ["drink", port, streams, spread_s]:
            run(drink(int(port), int(streams), float(spread_s)))
        case _:
            main()
