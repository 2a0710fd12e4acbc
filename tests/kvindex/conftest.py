"""Worker records for the index tests."""

from collections.abc import Callable

import pytest
from penstock_core.endpoint import Role, WorkerRecord
from penstock_core.profile import DecodePiece, EngineProfile

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
