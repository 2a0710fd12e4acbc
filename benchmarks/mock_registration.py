"""Registers the mock workers as real ones do: a record each, leases renewed, and the chunks of the benchmark's prompts.

The mock worker process calls it. Each conversation's chunks are held by one worker, so that the router's lookups find something.
"""

import asyncio
from collections.abc import Sequence

import msgspec
import numpy as np
from penstock_core.endpoint import Load, Role, WorkerRecord
from penstock_core.errors import IndexUnavailable
from penstock_core.kv_events import KvBatch
from penstock_core.profile import profile_named
from penstock_core.prompt import canonical_chat, chunk_keys, start_bytes
from penstock_kvindex.index import RENEW_S, Lease
from penstock_kvindex.redis import RedisIndex

from benchmarks.bodies import BODIES, MODEL, chat_body

PROFILE = profile_named("qwen3-32b-h100x2")
_SIZES_BYTES = (4096, 65_536)


class _Body(msgspec.Struct):
    messages: list[dict[str, msgspec.Raw]]


def held_keys(worker: int, workers: int) -> np.ndarray:
    """Chunk keys of the conversations that this worker holds, without the last chunk: the newest question is not cached."""
    kept = []
    for size in _SIZES_BYTES:
        for index in range(worker, BODIES, workers):
            messages = msgspec.json.decode(chat_body(size, index), type=_Body).messages
            kept.append(chunk_keys(canonical_chat(messages), start_bytes(), 0)[:-1])
    return np.unique(np.concatenate(kept))


def record_of(number: int, port: int) -> WorkerRecord:
    """What mock worker `number` says of itself."""
    return WorkerRecord(
        id=f"mock-{number}",
        url=f"http://127.0.0.1:{port}",
        role=Role.BOTH,
        pool="mock",
        model=MODEL,
        epoch=1 + number,
        profile=PROFILE,
        kv_total_tokens=PROFILE.kv_tokens,
        block_tokens=64,
        max_model_tokens=131_072,
        kv_generation=MODEL,
    )


async def register(redis_url: str, ports: Sequence[int]) -> asyncio.Task[None]:
    """Register a worker on each port and publish its chunks; gives the task that renews the leases."""
    index = RedisIndex(redis_url, MODEL)
    leases: list[tuple[Lease, int]] = []
    for number, port in enumerate(ports):
        epoch = 1 + number
        lease = await index.register(record_of(number, port))
        await index.publish(lease, KvBatch(epoch, 1, added=held_keys(number, len(ports))))
        leases.append((lease, epoch))
    return asyncio.get_running_loop().create_task(_renew(index, leases))


async def _renew(index: RedisIndex, leases: list[tuple[Lease, int]]) -> None:
    load = Load(running=16, kv_used_tokens=32_000, kv_total_tokens=PROFILE.kv_tokens)
    while True:
        for lease, epoch in leases:
            try:
                await index.renew(lease, epoch, load)
            except IndexUnavailable:
                continue  # the next round tries again
        await asyncio.sleep(RENEW_S)
