"""A router on a core of its own with mock workers beside it: what router_unary and router_stream measure.

Every duty is on: workers registered in a real Redis with leases and chunks, API keys from a file, request ids, deadlines,
retries, metrics, the log at its default level. Only the workers' answers are precomputed.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from penstock_cli.redis_server import RedisServer

from benchmarks.bodies import API_KEY, MODEL
from benchmarks.cpu import cores

_START_S = 60.0


class Running(NamedTuple):
    """A router ready to be measured, and one of its mock workers for a run without a router."""

    url: str
    pid: int
    mock_url: str
    load_cores: list[int]
    folder: Path


@contextmanager
def router(policy: str, workers: int, mock_options: Sequence[str] = ()) -> Iterator[Running]:
    """Start Redis, the mock workers and the router; wait until it is ready; stop all of it at the end."""
    own, others = cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        redis = stack.enter_context(RedisServer(folder / "redis"))
        options = ["--workers", str(workers), "--redis", redis.url, *mock_options]
        mock = stack.enter_context(_child([sys.executable, "-m", "benchmarks.mock_worker", *options], others, folder / "mock.log"))
        assert mock.stdout is not None
        ports = json.loads(mock.stdout.readline())
        keys = folder / "keys.yaml"
        keys.write_text(f"{API_KEY}: {{tenant: bench, weight: 2}}\nanother-key: {{tenant: other}}\n")
        command = [sys.executable, "-m", "penstock_cli.main", "router", "--port", "0", "--redis", redis.url, "--model", MODEL]
        log = folder / "router.log"
        process = stack.enter_context(_child([*command, "--policy", policy, "--api-keys", str(keys)], [own], log))
        url = _ready(process, log, workers)
        yield Running(url, process.pid, f"http://127.0.0.1:{ports[0]}", others, folder)


@contextmanager
def _child(command: list[str], on: Sequence[int], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A process pinned to cores; its stdin closes and it is told to stop at the end."""
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
    os.sched_setaffinity(process.pid, on)
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[str], log: Path, workers: int) -> str:
    """The router's URL once it is ready with all its endpoints. Raises RuntimeError with the end of its log."""
    deadline = time.monotonic() + _START_S
    url = ""
    while time.monotonic() < deadline and process.poll() is None:
        url = url or _listening_url(log)
        if url and _live_endpoints(url) == workers:
            return url
        time.sleep(0.05)
    raise RuntimeError(f"the router did not become ready with {workers} workers; its log ends: {log.read_text()[-3000:]}")


def _listening_url(log: Path) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
    return found[0] if found else ""


def _live_endpoints(url: str) -> int:
    """As its own metrics say; 0 before it answers."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
            said = answer.read().decode()
    except OSError:
        return 0
    return int(sum(float(line.rpartition(" ")[2]) for line in said.splitlines() if line.startswith("penstock_router_endpoints{")))
