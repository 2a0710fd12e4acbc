"""Real vLLM engines for the tests of this room: one environment, one model, two servers a session, and stacks of workers around them.

`make test-engines` runs these tests; without the environment they skip and say why, in CI they fail.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from engine_environment import NoEngine, engine_python
from raw_engine import CLAIM_S, CPU_ENVIRONMENT, SMALL_ARGS, RawEngine
from stack import Stack
from tiny_model import write_tiny_model

READY_S = 900.0
"""Two engines on two busy cores take minutes to come up."""
Start = Callable[..., AbstractAsyncContextManager[Stack]]


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


@pytest.fixture(scope="session")
def engines(vllm_python: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RawEngine, RawEngine]]:
    """Two servers that run already, on different cores: an engine on CPU spins."""
    folder = tmp_path_factory.mktemp("engines")
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    started = [RawEngine(vllm_python, tiny_model, folder / f"{number}.log", cores[number % len(cores)]) for number in range(2)]
    try:
        for engine in started:
            engine.wait(READY_S)
        yield started[0], started[1]
    finally:
        for engine in started:
            engine.stop()


@pytest.fixture
def adopt(engines: tuple[RawEngine, RawEngine], tiny_model: Path, tmp_path: Path) -> Start:
    """`async with adopt(prefill=1, decode=1) as stack`: workers around the session's two servers, one a pool, and a router."""

    @asynccontextmanager
    async def start(*, router: Mapping[str, object] | None = None, **pools: int) -> AsyncIterator[Stack]:
        worker = {"engine": "vllm", "model_folder": str(tiny_model), "kv_claim_seconds": float(CLAIM_S)}
        each = {
            pool: {"engine_url": engine.url, "engine_kv_events": engine.events, "engine_kv_replay": engine.replay}
            for pool, engine in zip(pools, engines, strict=True)
        }
        async with Stack(tmp_path, pools, router or {}, worker, pool_settings=each) as stack:
            yield stack

    return start


@pytest.fixture
def start_engines(vllm_python: str, tiny_model: Path, tmp_path: Path) -> Start:
    """The same with engines that the workers start themselves, for tests that kill them."""

    @asynccontextmanager
    async def start(*, router: Mapping[str, object] | None = None, **pools: int) -> AsyncIterator[Stack]:
        worker = {"engine": "vllm", "model_folder": str(tiny_model), "engine_python": vllm_python, "engine_args": SMALL_ARGS}
        cores = sorted(os.sched_getaffinity(0), reverse=True)
        each = {
            pool: {
                "engine_env": {**CPU_ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": str(cores[number % len(cores)])},
                "engine_start_s": READY_S,
            }
            for number, pool in enumerate(pools)
        }
        async with Stack(tmp_path, pools, router or {}, worker, pool_settings=each, ready_s=READY_S) as stack:
            yield stack

    return start
