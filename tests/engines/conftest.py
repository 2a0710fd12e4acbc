"""Real vLLM engines for the tests of this room: one environment, one model, two servers a session, and stacks of workers around them.

`make test-engines` runs these tests; without the environment they skip and say why, in CI they fail.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from engine_environment import NoEngine, engine_python
from raw_engine import CLAIM_S, CPU_ENVIRONMENT, SMALL_ARGS, RawEngine, calm
from stack import Stack
from tiny_model import write_tiny_model

READY_S = 900.0
"""An engine on busy cores takes minutes to come up."""
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
    """Two servers that run already."""
    folder = tmp_path_factory.mktemp("engines")
    started = [RawEngine(vllm_python, tiny_model, folder / f"{number}.log") for number in range(2)]
    try:
        for engine in started:
            engine.wait(READY_S)
        yield started[0], started[1]
    finally:
        for engine in started:
            engine.stop()


@pytest.fixture
def start(engines: tuple[RawEngine, RawEngine], vllm_python: str, tiny_model: Path, tmp_path: Path) -> Start:
    """`async with start(adopted=("decode",), own=("prefill",)) as stack`: a router, and workers of one replica a pool.

    The pools of `adopted` get workers around the session's servers; those of `own` start an engine themselves, for tests that
    kill it. `events` replaces the address of KV events that a pool's worker is told.
    """

    @asynccontextmanager
    async def started(
        *,
        adopted: Sequence[str] = (),
        own: Sequence[str] = (),
        events: Mapping[str, str] | None = None,
        router: Mapping[str, object] | None = None,
    ) -> AsyncIterator[Stack]:
        common = {"engine": "vllm", "model_folder": str(tiny_model), "kv_claim_seconds": float(CLAIM_S)}
        each: dict[str, Mapping[str, object]] = {
            pool: {
                "engine_url": engine.url,
                "engine_kv_events": (events or {}).get(pool, engine.events),
                "engine_kv_replay": engine.replay,
            }
            for pool, engine in zip(adopted, engines, strict=False)
        }
        each |= {
            pool: {"engine_python": vllm_python, "engine_args": SMALL_ARGS, "engine_env": CPU_ENVIRONMENT, "engine_start_s": READY_S}
            for pool in own
        }
        ready_s = READY_S if own else 120.0
        async with Stack(tmp_path, dict.fromkeys(each, 1), router or {}, common, pool_settings=each, ready_s=ready_s) as stack:
            for worker in stack.fleet.status():
                if worker.pool in own and worker.pid is not None:
                    calm(worker.pid)
            yield stack

    return started
