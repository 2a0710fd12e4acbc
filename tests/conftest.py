"""Fixtures shared by all test rooms: a real Redis server and a real Kubernetes control plane per session, private ones on demand."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_fixtures import control_plane, controllers, fake_node, go_programs, make_control_plane, namespace  # noqa: F401  fixtures
from penstock_cli.redis_server import RedisServer
from penstock_core.endpoint import Role, WorkerRecord
from penstock_core.profile import DecodePiece, EngineProfile


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One real Redis server for the whole session. Tests keep apart by taking a served model's name of their own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(redis_server: RedisServer) -> str:
    """URL of the session's server."""
    return redis_server.url


@pytest.fixture
def make_redis_server(tmp_path: Path) -> Iterator[Callable[[], RedisServer]]:
    """Starts a private server at each call, for tests that pause, stop or empty it; all are gone when the test ends."""
    servers: list[RedisServer] = []

    def make() -> RedisServer:
        server = RedisServer(tmp_path / f"redis-{len(servers)}")
        server.start()
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.close()


_model_numbers = itertools.count()


@pytest.fixture
def unused_model() -> str:
    """A served model's name that no other test uses, so that its keys in the session's Redis are its own."""
    return f"model-{next(_model_numbers)}"


PROFILE = EngineProfile(name="test", source="made up", kv_tokens=1 << 20, kv_bytes_per_token=32, decode_small=DecodePiece(0.01))


@pytest.fixture(scope="session")
def make_record() -> Callable[..., WorkerRecord]:
    """Makes a worker's record: `make_record(2)` is `worker-2`, epoch 1002."""

    def make(number: int, epoch: int | None = None) -> WorkerRecord:
        return WorkerRecord(
            id=f"worker-{number}",
            url=f"http://127.0.0.1:{10_000 + number}",
            role=Role.BOTH,
            pool="default",
            model="model",
            epoch=1_000 + number if epoch is None else epoch,
            profile=PROFILE,
            kv_total_tokens=1 << 20,
            block_tokens=64,
            max_model_tokens=8_192,
        )

    return make
