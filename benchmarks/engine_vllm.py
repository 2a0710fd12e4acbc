"""What router and worker add to a real vLLM: vLLM's own load generator straight at an engine, through a router, and through both.

`make bench-engines`. One engine on CPU with a random model of two layers; the three ways take turns, each run has prompts of its own.
Times are as the generator measures them, CPU is of the router's and the worker's processes. Method: docs/benchmarks.md.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from engine_environment import engine_python
from penstock_cli.child import Child
from penstock_cli.redis_server import RedisServer
from raw_engine import RawEngine
from routed import routed
from tiny_model import write_tiny_model

from benchmarks.cpu import cpu_of
from benchmarks.table import Row, keep, show

RUNS, PROMPTS, CONCURRENCY = 5, 60, 4
INPUT_TOKENS, OUTPUT_TOKENS = 500, 16
SAID = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "whole answer"}
"""Medians that the generator gives. Single gaps are left out: an engine short of CPU lets its tokens out in bursts, with or without us."""
_START_S = 900.0
_SECRETS = {"PENSTOCK_CHUNK_SECRET": "5eed", "PENSTOCK_FLEET_TOKEN": "fleet-token"}
_GENERATOR = """
import json, sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
for line in sys.stdin:
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args(json.loads(line)))
    print("one run ended", flush=True)
"""
"""`vllm bench serve`, many times in one process: it takes longer to import than to run."""


class Generator:
    """vLLM's load generator. `close` ends it."""

    def __init__(self, python: str, model: Path, folder: Path) -> None:
        self._model, self._folder, self._runs = model, folder, 0
        log = (folder / "generator.log").open("wb")
        environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command = [python, "-c", _GENERATOR]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environ)

    def run(self, url: str, prompts: int) -> dict[str, Any]:
        """One run; what the generator measured. Raises RuntimeError for a failed request."""
        self._runs += 1
        words = ["--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions", "--model", "m"]
        words += ["--tokenizer", str(self._model), "--dataset-name", "random", "--input-len", str(INPUT_TOKENS)]
        words += ["--output-len", str(OUTPUT_TOKENS), "--ignore-eos", "--num-prompts", str(prompts), "--seed", str(self._runs)]
        words += ["--max-concurrency", str(CONCURRENCY), "--disable-tqdm", "--save-result", "--percentile-metrics", "ttft,tpot,e2el"]
        words += ["--result-dir", str(self._folder), "--result-filename", "run.json"]
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("one run ended"):
                break
        else:
            raise RuntimeError(f"the generator ended: {(self._folder / 'generator.log').read_text()[-3000:]}")
        found: dict[str, Any] = json.loads((self._folder / "run.json").read_text())
        if found["failed"] or found["completed"] != prompts:
            raise RuntimeError(f"{found['failed']} of {prompts} requests failed through {url}")
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@contextmanager
def worker(folder: Path, model: Path, engine: RawEngine, redis_url: str) -> Iterator[Child]:
    """A worker around the engine, registered."""
    announced = folder / "worker.url"
    settings = {"engine": "vllm", "engine_url": engine.url, "engine_kv_events": engine.events, "engine_kv_replay": engine.replay}
    settings |= {"model_folder": str(model), "announce_path": str(announced)}
    command = [sys.executable, "-m", "penstock_cli.main", "worker", "--model", "m"]
    command += [f"--set={name}={value}" for name, value in settings.items()]
    child = Child("worker", command, folder / "worker.log", {**_SECRETS, "PENSTOCK_REDIS_URL": redis_url})
    try:
        deadline_s = time.monotonic() + _START_S
        while not announced.exists():
            if child.ended() is not None or time.monotonic() > deadline_s:
                raise child.failure()
            time.sleep(0.1)
        yield child
    finally:
        child.stop(10.0)


def run(runs: int, prompts: int) -> list[Row]:
    """All ways in turn, `runs` times, after a run each that warms."""
    ways: dict[str, tuple[str, list[int]]] = {}
    measured: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        python, model = str(engine_python(print)), folder / "tiny"
        write_tiny_model(model)
        engine = RawEngine(python, model, folder / "engine.log")
        stack.callback(engine.stop)
        generator = stack.enter_context(closing(Generator(python, model, folder)))
        engine.wait(_START_S)
        for name in ("plain", "worker"):
            (folder / name).mkdir()
        plain = stack.enter_context(routed(folder / "plain", ("--endpoint", engine.url)))
        redis = stack.enter_context(RedisServer(folder / "redis"))
        beside = stack.enter_context(worker(folder / "worker", model, engine, redis.url))
        environ = {**_SECRETS, "PENSTOCK_REDIS_URL": redis.url}
        both = stack.enter_context(routed(folder / "worker", ("--model", "m"), environ))
        ways = {
            "the engine alone": (engine.url, []),
            "through a router": (plain.url, [plain.pid]),
            "through router and worker": (both.url, [both.pid, beside.pid]),
        }
        for turn in range(runs + 1):
            for way, (url, pids) in ways.items():
                before = [cpu_of(pid) for pid in pids]
                found = generator.run(url, prompts)
                cpu_s = sum(cpu_of(pid).since(was).total_s for pid, was in zip(pids, before, strict=True))
                figures = {name: float(found[f"median_{name}_ms"]) for name in SAID}
                if turn:
                    measured.setdefault(way, []).append({**figures, "cpu_ms": cpu_s / prompts * 1e3})
    return _rows(measured)


def _rows(measured: dict[str, list[dict[str, float]]]) -> list[Row]:
    rows = []
    alone = measured["the engine alone"]
    for way, samples in measured.items():
        for name, said in SAID.items():
            taken = tuple(sample[name] for sample in samples)
            added = statistics.median(sample[name] - was[name] for sample, was in zip(samples, alone, strict=True))
            rows.append(Row(f"{said}, {way}", "ms", taken, note="" if samples is alone else f"{added:+.2f} ms beside the engine alone"))
        if samples is not alone:
            rows.append(Row(f"CPU a request, {way}", "ms", tuple(sample["cpu_ms"] for sample in samples)))
    return rows


def main() -> None:
    rows = run(2, 20) if "--quick" in sys.argv else run(RUNS, PROMPTS)
    show(f"A real vLLM: {INPUT_TOKENS} + {OUTPUT_TOKENS} tokens, {CONCURRENCY} at a time, no request failed", rows)
    print(keep("engine_vllm", rows))


if __name__ == "__main__":
    main()
