"""Measures the index: bytes a chunk in process and in Redis, look-up, applying a batch, warm start.

`python -m benchmarks.index` takes 1 M chunks with two of 64 holders each and a warm start of 2 M; `--big` 10 M as well in
process, `--quick` a tenth of everything. Prompts are runs of 2,000 chunks, as workers publish them; each look-up takes
another prompt, so the table is as cold as in service. Median of 7 or more runs.
"""

import argparse
import asyncio
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from penstock_cli.redis_server import RedisServer
from penstock_core.endpoint import Role, WorkerRecord
from penstock_core.kv_events import KvBatch, KvState
from penstock_core.profile import DEFAULT_PROFILE
from penstock_kvindex import chunk_table
from penstock_kvindex.mirror import Mirror, warm_up
from penstock_kvindex.redis import RedisIndex

from benchmarks.table import Row, keep, show

WORKERS = 64
PROMPT = 2_000
BATCH = 100
RUNS = 7
Keys = NDArray[np.uint64]


def samples_us(call: Callable[[int], object], times: int, runs: int = RUNS) -> tuple[float, ...]:
    """Microseconds a call: the median of `times` calls, in each of `runs` runs."""
    medians = []
    for run in range(runs):
        taken = []
        for i in range(times):
            began = time.perf_counter_ns()
            call(run * times + i)
            taken.append(time.perf_counter_ns() - began)
        medians.append(float(np.median(taken)) / 1_000)
    return tuple(medians)


def fleet_of(chunks: int) -> tuple[Keys, NDArray[np.int64]]:
    """Random keys in prompts of PROMPT, and two holders a prompt, shape (prompts, 2)."""
    random = np.random.default_rng(1)
    keys = random.integers(0, 2**64, chunks, dtype=np.uint64)
    first = random.integers(0, WORKERS, chunks // PROMPT)
    return keys, np.stack([first, (first + random.integers(1, WORKERS, len(first))) % WORKERS], axis=1)


def in_process(chunks: int) -> list[Row]:
    """Bytes, look-ups and batches of a mirror of so many chunks."""
    keys, holders = fleet_of(chunks)
    prompts = keys.reshape(-1, PROMPT)
    mirror = Mirror()
    longest = 0.0
    for prompt, pair in zip(prompts, holders.tolist(), strict=True):
        for slot in pair:
            began = time.perf_counter()
            mirror.apply(slot, KvBatch(1, 1, added=prompt))
            longest = max(longest, time.perf_counter() - began)
    size = f"{chunks / 1e6:g} M chunks"
    order = np.random.default_rng(2).permutation(len(prompts))
    hits = mirror.longest_prefix(prompts[0])
    assert sorted(hits.chunks.tolist()) == [PROMPT, PROMPT]
    few = [prompts[number][:16].copy() for number in order]
    rows = [Row(f"bytes a chunk in process, {size}", "B", (mirror.bytes_used / mirror.chunks,), 40.0)]
    rows.append(
        Row(
            f"look-up of 2,000 keys, {size}",
            "µs",
            samples_us(lambda i: mirror.longest_prefix(prompts[order[i % len(order)]]), 100),
            30.0,
            "another prompt each time",
        )
    )
    rows.append(Row("the same, one prompt again and again", "µs", samples_us(lambda i: mirror.longest_prefix(prompts[0]), 100)))
    rows.append(Row(f"look-up of 16 keys, {size}", "µs", samples_us(lambda i: mirror.longest_prefix(few[i % len(few)]), 500), 3.0))
    fresh = np.random.default_rng(3).integers(0, 2**64, (50 * RUNS, BATCH), dtype=np.uint64)
    batches = [KvBatch(1, 1, added=some, removed=prompts[order[i % len(order)]][:BATCH].copy()) for i, some in enumerate(fresh)]
    rows.append(
        Row(
            f"apply 100 added and 100 removed, {size}",
            "µs",
            samples_us(lambda i: mirror.apply(int(holders[order[i % len(order)], 0]), batches[i]), 50),
        )
    )
    rows.append(Row(f"longest pause while filling, {size}", "ms", (1_000 * longest,), note="the table doubles"))
    mirror.drop(5)
    began, turns = time.perf_counter(), 1
    while not mirror.sweep():
        turns += 1
    rows.append(Row(f"sweep a dropped worker, {size}", "ms", (1_000 * (time.perf_counter() - began),), note=f"in {turns} turns"))
    return rows


def record(number: int) -> WorkerRecord:
    return WorkerRecord(
        id=f"worker-{number}",
        url=f"http://127.0.0.1:{10_000 + number}",
        role=Role.BOTH,
        pool="bench",
        model="bench",
        epoch=number + 1,
        profile=DEFAULT_PROFILE,
        kv_total_tokens=DEFAULT_PROFILE.kv_tokens,
        block_tokens=64,
        max_model_tokens=131_072,
    )


async def in_redis(chunks: int, warm_chunks: int, server: RedisServer) -> list[Row]:
    """Bytes a chunk at `chunks`, publishing, and a warm start of `warm_chunks`, in one table made for twice as many."""
    index = RedisIndex(server.url, "bench", timeout_s=60.0, max_chunks=2 * warm_chunks)
    leases = [await index.register(record(number)) for number in range(WORKERS)]
    memory = index._redis
    before = int((await memory.info("memory"))["used_memory"])
    keys, holders = fleet_of(warm_chunks)
    prompts = keys.reshape(-1, PROMPT)
    sequences = [0] * WORKERS
    rows: list[Row] = []
    publishing = []
    for number, (prompt, pair) in enumerate(zip(prompts, holders.tolist(), strict=True)):
        for slot in pair:
            for part in np.array_split(prompt, 2):
                sequences[slot] += 1
                began = time.perf_counter_ns()
                assert await index.publish(leases[slot], KvBatch(slot + 1, sequences[slot], added=part))
                publishing.append((time.perf_counter_ns() - began) / 1_000 / 10)
        if (number + 1) * PROMPT == chunks:
            stream = int(await memory.memory_usage(index._prefix + "kv", samples=0))
            used = int((await memory.info("memory"))["used_memory"]) - before - stream
            note = f"and {stream / 1e6:.0f} MB of stream, whatever the chunks"
            rows.append(Row(f"bytes a chunk in Redis, {chunks / 1e6:g} M chunks", "B", (used / chunks,), 40.0, note))
    spread = tuple(float(np.median(part)) for part in np.array_split(publishing, RUNS))
    rows.append(Row("publish, a hundred keys of a batch of 1,000", "µs", spread, note="round trip with one Lua call"))
    whole, reading = [], []
    for _ in range(RUNS - 2):
        began = time.perf_counter()
        warm = await index.warm()
        reading.append(time.perf_counter() - began)
        mirror = Mirror()
        mirror.put(warm.keys, warm.offsets, warm.slots)
        whole.append(time.perf_counter() - began)
        assert mirror.chunks == warm_chunks
    size = f"{warm_chunks / 1e6:g} M chunks"
    rows.append(Row(f"warm start, {size}", "s", tuple(whole), 5.0, f"{np.median(reading):.2f} s of it reading Redis"))
    state = []
    for slot in range(RUNS - 2):
        began = time.perf_counter()
        held = await index.state_of(leases[slot].slot)
        state.append(time.perf_counter() - began)
        assert isinstance(held, KvState)
    rows.append(Row(f"one worker's chunks out of the table, {size}", "s", tuple(state), note="a reload when the worker cannot be asked"))
    await index.aclose()
    return rows


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--big", action="store_true", help="10 M chunks in process as well")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    asked = parser.parse_args()
    scale = 10 if asked.quick else 1
    if not chunk_table.COMPILED:
        print("numba is not installed: the mirror runs as plain Python, a hundred times slower")
    began = time.perf_counter()
    warm_up()
    rows = [Row("compile or load the compiled code", "s", (time.perf_counter() - began,), note="once a process, before the first request")]
    for chunks in (1_000_000, 10_000_000) if asked.big else (1_000_000,):
        rows += in_process(chunks // scale)
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        rows += asyncio.run(in_redis(1_000_000 // scale, 2_000_000 // scale, server))
    assert not any(math.isnan(row.median) for row in rows)
    show("index", rows)
    print(keep("index", rows))


if __name__ == "__main__":
    main()
