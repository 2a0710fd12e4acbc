"""Builders for scheduling tests, and the fixture that runs a test on the compiled and on the plain kernel."""

import importlib
import sys
from collections.abc import Callable, Iterator
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import penstock_router
import pytest
from penstock_core.endpoint import Endpoint, Role, WorkerRecord
from penstock_core.profile import DecodePiece, EngineProfile
from penstock_router import beliefs, booking, kernel, machine_code, policies
from penstock_router import columns as col
from penstock_router.scheduling import Ask, Options, Scheduler

# Round numbers for arithmetic by hand: 10 ms + 0.1 ms a token; a decode step of 20 ms + 1 ms a stream; 1,000 tokens a pass.
ROUND = EngineProfile(
    name="round",
    source="made up",
    kv_tokens=100_000,
    kv_bytes_per_token=1_000,
    transfer_bytes_per_s=1e9,
    pass_tokens=1_000,
    prefill_constant_s=0.010,
    prefill_per_token_s=0.0001,
    decode_small=DecodePiece(constant_s=0.020, per_stream_s=0.001),
)


class Hits:
    """As the mirror gives them."""

    def __init__(self, held: dict[int, int]) -> None:
        self.slots = np.array(sorted(held), dtype=np.uint16)
        self.chunks = np.array([held[slot] for slot in sorted(held)], dtype=np.int32)


class Builders:
    ROUND = ROUND
    Hits = Hits

    @staticmethod
    def endpoint(name: str, role: Role = Role.BOTH, slot: int | None = None, draining: bool = False, **fields: Any) -> Endpoint:
        profile = fields.pop("profile", ROUND)
        record = WorkerRecord(
            id=name,
            url="http://127.0.0.1:1",
            role=role,
            pool="pool",
            model="m",
            epoch=fields.pop("epoch", 1),
            profile=profile,
            kv_total_tokens=fields.pop("kv_total_tokens", profile.kv_tokens),
            block_tokens=64,
            max_model_tokens=131_072,
            **fields,
        )
        return Endpoint(record, slot=slot, draining=draining)

    @staticmethod
    def scheduler(endpoints: list[Endpoint], policy: str = "target-misses", seed: int = 1, **options: Any) -> Scheduler:
        scheduler = Scheduler(policy, rng=Random(seed), options=Options(**options))
        scheduler.set_endpoints(endpoints, 0.0)
        return scheduler

    @staticmethod
    def ask(prompt_tokens: int = 500, **fields: Any) -> Ask:
        return Ask(prompt_tokens=prompt_tokens, **fields)

    @staticmethod
    def counts(scheduler: Scheduler) -> dict[str, float]:
        """What must be zero when nothing is booked, summed over all rows (a pass may hold foreign tokens)."""
        rows = scheduler.beliefs.rows
        names = ("BOOKED", "PROMPTS", "COMPUTED", "STREAMS", "CONTEXT", "CELLS_USED", "KV_BOOKED", "RUNNING", "HELD_CHUNKS")
        ours = np.maximum(0.0, rows[:, col.PASSING] - rows[:, col.FOREIGN_PROMPT])
        return {"PASSING": float(ours.sum())} | {name: float(np.abs(rows[:, getattr(col, name)]).sum()) for name in names}


@pytest.fixture
def build() -> type[Builders]:
    return Builders


def _plain() -> ModuleType:
    """The kernel's text, loaded as where numba is not installed."""
    loaded = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(kernel.__name__)}
    module = importlib.import_module(kernel.__name__)
    for name in [name for name in sys.modules if name.startswith(kernel.__name__)]:
        del sys.modules[name]
    sys.modules.update(loaded)
    penstock_router.kernel = kernel
    assert module is not kernel and not module.COMPILED
    return module


@pytest.fixture(scope="session")
def plain_kernel() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_code, "njit", None)
        module = _plain()
    yield module


@pytest.fixture(params=["compiled", "plain"])
def each_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, plain_kernel: ModuleType) -> Callable[[], None]:
    """Runs the test twice: on the kernel compiled by numba, and on the same text as plain Python."""
    if request.param == "plain":
        for module in (beliefs, booking, policies):
            monkeypatch.setattr(module, "kernel", plain_kernel)
    elif not kernel.COMPILED:
        pytest.skip("numba is not installed")
    return lambda: None
