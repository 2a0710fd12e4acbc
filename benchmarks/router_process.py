"""A router on a core of its own with mock workers beside it: what router_unary and router_stream measure.

Every duty is on: workers registered in a real Redis with leases and chunks, API keys from a file, request ids, deadlines,
retries, metrics, the log at its default level. Only the workers' answers are precomputed.
"""

import json
import os
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
def router(policy: str, workers: int, mock_options: Sequence[str] = (), *, by_hand: bool = False) -> Iterator[Running]:
    """Start Redis, the mock workers and the router; wait until it is ready; stop all of it at the end.

    `by_hand` gives the endpoints on the command line instead of the registry: hits are then the router's own guesses.
    """
    own, others = cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        registry = [] if by_hand else ["--redis", stack.enter_context(RedisServer(folder / "redis")).url]
        mock_command = [sys.executable, "-m", "benchmarks.mock_worker", "--workers", str(workers), *registry, *mock_options]
        mock = stack.enter_context(_child(mock_command, others, folder / "mock.log"))
        assert mock.stdout is not None
        urls = [f"http://127.0.0.1:{port}" for port in json.loads(mock.stdout.readline())]
        found_by = [word for url in urls for word in ("--endpoint", url)] if by_hand else [*registry, "--model", MODEL]
        keys, log, url_file = folder / "keys.yaml", folder / "router.log", folder / "url"
        keys.write_text(f"{API_KEY}: {{tenant: bench, weight: 2}}\nanother-key: {{tenant: other}}\n")
        options = ["--port", "0", "--policy", policy, "--api-keys", str(keys), "--url-file", str(url_file), *found_by]
        process = stack.enter_context(_child([sys.executable, "-m", "penstock_cli.main", "router", *options], [own], log))
        yield Running(_ready(process, url_file, log, workers), process.pid, urls[0], others, folder)


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


def _ready(process: subprocess.Popen[str], url_file: Path, log: Path, workers: int) -> str:
    """The router's URL once it is ready with all its endpoints. Raises RuntimeError with the end of its log."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        url = url_file.read_text().strip() if url_file.exists() else ""
        if url and _live_endpoints(url) == workers:
            return url
        time.sleep(0.05)
    raise RuntimeError(f"the router did not become ready with {workers} workers; its log ends: {log.read_text()[-3000:]}")


def _live_endpoints(url: str) -> int:
    """As its own metrics say; 0 before it answers."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
            said = answer.read().decode()
    except OSError:
        return 0
    return int(sum(float(line.rpartition(" ")[2]) for line in said.splitlines() if line.startswith("penstock_router_endpoints{")))
