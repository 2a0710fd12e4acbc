"""vLLM keeps the contract that every engine keeps: the suite of tests/contract, with a worker's engine around a real server."""

from collections.abc import Callable
from pathlib import Path

import pytest
from penstock_core.profile import DEFAULT_PROFILE
from penstock_worker.engine import Engine
from penstock_worker.engines.server.config import ServerConfig
from penstock_worker.engines.server.engine import ServerEngine
from penstock_worker.engines.vllm.dialect import Vllm
from raw_engine import RawEngine

from tests.contract.test_engine_contract import *  # noqa: F403 -- its tests are collected here, with the `make` below


@pytest.fixture
def make(engines: tuple[RawEngine, RawEngine], tiny_model: Path) -> Callable[[], Engine]:
    """Adopts a server of the session's: starting and stopping is joining and leaving it."""
    raw = engines[0]

    def made() -> Engine:
        config = ServerConfig(
            model="m",
            profile=DEFAULT_PROFILE,
            folder=str(tiny_model),
            adopt_url=raw.url,
            adopt_events=raw.events,
            adopt_replay=raw.replay,
            connector="none",
        )
        return ServerEngine(config, Vllm())

    return made
