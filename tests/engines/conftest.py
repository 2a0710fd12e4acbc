"""Real vLLM engines for the tests of this room: one environment, one model, and stacks of router and workers around them.

`make test-engines` runs these tests; without the environment they skip and say why, in CI they fail.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_environment import NoEngine, engine_python
from stack import Stack
from tiny_model import write_tiny_model

READY_S = 900.0
"""Two engines on two busy cores take minutes to come up."""
ARGS = ("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "4096", "--max-num-seqs", "16")
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "UCX_TLS": "tcp,sm,self"}


@pytest.fixture(scope="session")
def vllm_python(request: pytest.FixtureRequest) -> str:
    """Interpreter of an environment with vLLM, made now if nobody has yet."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", flush=True)  # noqa: T201 -- minutes pass

    try:
        return str(engine_python(say))
    except NoEngine as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder)
    return folder


def cores() -> list[int]:
    """Those that we may use; engines spin, and are pinned to different ones from the last on."""
    return sorted(os.sched_getaffinity(0), reverse=True)


@pytest.fixture(scope="session")
def worker_settings(vllm_python: str, tiny_model: Path) -> Mapping[str, object]:
    """Settings of a worker with the tiny model, but for the core."""
    return {
        "engine": "vllm",
        "model_folder": str(tiny_model),
        "engine_python": vllm_python,
        "engine_args": ARGS,
        "kv_claim_seconds": 5.0,
        "engine_start_s": READY_S,
    }


@pytest.fixture
def start_engines(tmp_path: Path, worker_settings: Mapping[str, object]) -> Iterator[Callable[..., Any]]:
    """`async with start_engines(prefill=1, decode=1, args=(…), router={…}) as stack`: real engines, gone afterwards."""

    @asynccontextmanager
    async def start(*, args: tuple[str, ...] = (), router: Mapping[str, object] | None = None, **pools: int) -> AsyncIterator[Stack]:
        free = cores()
        per_pool = {
            pool: {
                "engine_args": (*ARGS, *args),
                "engine_env": {**ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": str(free[number % len(free)])},
            }
            for number, pool in enumerate(pools)
        }
        async with Stack(tmp_path, pools, router or {}, worker_settings, ready_s=READY_S, pool_settings=per_pool) as stack:
            yield stack

    yield start
