"""The shared index in Redis (6.2 to current) or Valkey: one Lua call a round trip, every call bounded in time.

`cli` makes one a served model and hands it to publishers and followers. Keys, types and meanings are in `lua/layout.lua`.

The number of buckets is fixed when the first worker writes (`bucket_bits` in `meta`; everyone reads it there): enough that a
full table (`max_chunks`) has 32 to 64 chunks a bucket. That fits Redis' compact hash encoding with its defaults (128 or 512
entries) with room for chance, and costs 2 to 4 bytes a chunk for the buckets themselves. A table for more chunks is made by
emptying these keys: the workers fill it again in seconds, which is less than what moving fields between buckets would be.
"""

import asyncio
import math
import secrets
from collections.abc import Awaitable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from penstock_core.endpoint import Load, WorkerRecord
from penstock_core.kv_events import NO_KEYS, Keys, KvBatch, KvState, pack_keys, unpack_keys
from penstock_core.prompt import DEFAULT_CHUNK_BYTES
from redis.asyncio import Redis

from penstock_kvindex.calls import bounded, connect
from penstock_kvindex.index import (
    DEFAULT_MAX_CHUNKS,
    FORGET_S,
    LAYOUT_VERSION,
    LEASE_S,
    MOST_SLOTS,
    Lease,
    NoFreeSlot,
    Registered,
    Registry,
    Tail,
    TailEntry,
    Warm,
)
from penstock_kvindex.models import ANNOUNCE_S, KNOWN_S
from penstock_kvindex.models import KEY as MODELS_KEY
from penstock_kvindex.registry import decode_load, decode_record, encode_load, encode_record, key_prefix

_LUA = Path(__file__).parent / "lua"
_CHUNKS_A_BUCKET = 64
_MOST_BUCKET_BITS = 20
_MOST_TAILED = 256
_KEYS_A_PIECE = 1_024
_CHUNKS_A_PIECE = 4_096
_CLEARED, _REPUBLISHED = 1, 2


@cache
def _texts() -> dict[str, str]:
    """Every script, by name."""
    layout = (_LUA / "layout.lua").read_text()
    return {path.stem: layout + path.read_text() for path in _LUA.glob("*.lua") if path.stem != "layout"}


class RedisIndex:
    """Implements `SharedIndex`; see there for every method. Safe for concurrent calls of one event loop."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout_s: float = 2.0,
        lease_s: float = LEASE_S,
        forget_s: float = FORGET_S,
        max_chunks: int = DEFAULT_MAX_CHUNKS,
        most_slots: int = MOST_SLOTS,
        kept_batches: int = 16_384,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
        client: Redis | None = None,
    ) -> None:
        """`url`: `redis://`, `rediss://` or `unix://`. `timeout_s` bounds every call, `tail` beyond its own waiting.

        `client`: one of `calls.connect` to use instead, for those who read many models now and then; it stays open.
        """
        self._prefix = key_prefix(model)
        self._meta = self._prefix + "meta"
        self._timeout_s = timeout_s
        self._lease_ms = math.ceil(lease_s * 1_000)
        self._forget_ms = math.ceil(forget_s * 1_000)
        self._max_chunks = max_chunks
        self._bucket_bits = min(_MOST_BUCKET_BITS, max(4, math.ceil(math.log2(max(1, max_chunks) / _CHUNKS_A_BUCKET))))
        self._most_slots = most_slots
        self._kept_batches = kept_batches
        self._chunk_bytes = chunk_bytes
        self._redis = connect(url, timeout_s) if client is None else client
        self._shared = client is not None
        self._model = model
        self._announced_s = -math.inf  # loop time of the last word that the model is there
        self._scripts = {name: self._redis.register_script(text) for name, text in _texts().items()}

    async def register(self, record: WorkerRecord) -> Lease:
        slot, incarnation = await self._script(
            "register",
            record.id,
            _hex(record.epoch),
            encode_record(record),
            self._lease_ms,
            LAYOUT_VERSION,
            secrets.token_hex(8),
            self._bucket_bits,
            self._most_slots,
            self._chunk_bytes,
        )
        if slot < 0:
            raise NoFreeSlot(f"no free slot for worker {record.id!r}: all {self._most_slots} are taken or wait for the janitor")
        await self._announce()
        return Lease(slot, incarnation.decode())

    async def renew(self, lease: Lease, epoch: int, load: Load | None) -> bool:
        wire = b"" if load is None else encode_load(load)
        renewed = bool(await self._script("renew", lease.slot, _hex(epoch), self._lease_ms, wire))
        if renewed and asyncio.get_running_loop().time() - self._announced_s > ANNOUNCE_S:
            await self._announce()
        return renewed

    async def publish(self, lease: Lease, batch: KvBatch) -> bool:
        if batch.cleared:  # looks at the whole table, so in pieces, like a republish
            return await self._replace(lease.slot, batch, batch.added, expected=batch.sequence - 1, flags=_CLEARED)
        done = await self._script(
            "publish",
            lease.slot,
            _hex(batch.epoch),
            batch.sequence,
            pack_keys(batch.added),
            pack_keys(batch.removed),
            self._kept_batches,
        )
        return bool(done)

    async def republish(self, lease: Lease, state: KvState) -> bool:
        return await self._replace(lease.slot, KvBatch(state.epoch, state.sequence), state.keys, expected=None, flags=_REPUBLISHED)

    async def leave(self, lease: Lease, epoch: int) -> None:
        await self._script("leave", lease.slot, _hex(epoch))

    async def registry(self) -> Registry:
        incarnation, now_ms, _, _, slots, leases, load, heads = await self._script("registry", "all")
        lease_ms, loads, sequences = _pairs(leases), _pairs(load), _heads(heads)
        rows = []
        for slot, wire in _pairs(slots).items():
            record = decode_record(wire)
            if record is not None:
                lease_s = (float(lease_ms.get(slot, b"0")) - float(now_ms)) / 1_000
                rows.append(Registered(slot, record, lease_s, decode_load(loads.get(slot)), sequences.get(slot, (0, 0))[1]))
        return Registry(incarnation.decode(), tuple(rows))

    async def tail(self, position: str, wait_s: float) -> Tail:
        after = int(position)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xread({self._prefix + "kv": f"{after}-0"}, count=_MOST_TAILED, block=max(1, math.ceil(wait_s * 1_000)))
        pipeline.time()
        read, (seconds, micros) = await self._bounded(pipeline.execute(), self._timeout_s + wait_s)
        if not read:
            return Tail(position, (), trimmed=False)
        now_ms = seconds * 1_000 + micros / 1_000
        entries = tuple(_tail_entry(name, fields, now_ms) for name, fields in read[0][1])
        return Tail(entries[-1].position, entries, trimmed=after > 0 and int(entries[0].position) > after + 1)

    async def warm(self) -> Warm:
        incarnation, _, serial, bits, _, _, _, heads = await self._script("registry", "heads")
        keys, counts, slots = [b""], [b""], [b""]
        for first, behind in self._pieces(bits, await self.chunks()):
            some_keys, some_counts, some_slots = await self._script("read", first, behind, "")
            keys.append(some_keys)
            counts.append(some_counts)
            slots.append(some_slots)
        held = np.frombuffer(b"".join(counts), "<u2")
        offsets = np.zeros(len(held) + 1, np.int64)
        np.cumsum(held, out=offsets[1:])
        all_slots = np.frombuffer(b"".join(slots), "<u2").astype(np.uint16, copy=False)
        return Warm(incarnation.decode(), serial.decode(), _heads(heads), unpack_keys(b"".join(keys)), offsets, all_slots)

    async def state_of(self, slot: int) -> KvState | None:
        _, _, _, bits, _, _, _, heads = await self._script("registry", "heads")
        head = _heads(heads).get(slot)
        if head is None:
            return None
        pieces = [(await self._script("read", first, behind, slot))[0] for first, behind in self._pieces(bits, await self.chunks())]
        return KvState(*head, unpack_keys(b"".join(pieces)))

    async def sweep(self, budget: int) -> int:
        dropped = 0
        for first in range(0, budget, _CHUNKS_A_BUCKET):
            some, done = await self._script("sweep", min(_CHUNKS_A_BUCKET, budget - first), self._forget_ms, self._max_chunks)
            dropped += some
            if done:
                break
        return dropped

    async def holders(self, keys: Sequence[int]) -> list[tuple[int, ...]]:
        found = await self._script("holders", pack_keys(np.array(keys, np.uint64)))
        return [tuple(np.frombuffer(slots, "<u2").tolist()) for slots in found]

    async def chunks(self) -> int:
        return int(await self._bounded(cast("Awaitable[Any]", self._redis.hget(self._meta, "chunks")), self._timeout_s) or 0)

    async def aclose(self) -> None:
        if not self._shared:
            await self._redis.aclose()

    async def _announce(self) -> None:
        """Say that the model has a worker, for `models.ServedModels`. A call of its own: the key is in no model's Cluster slot."""
        call = self._scripts["announce"](keys=[MODELS_KEY], args=[self._model, math.ceil(KNOWN_S * 1_000)])
        await self._bounded(call, self._timeout_s)
        self._announced_s = asyncio.get_running_loop().time()

    async def _replace(self, slot: int, batch: KvBatch, keys: Keys, *, expected: int | None, flags: int) -> bool:
        """Replace what the slot holds by `keys`, piece by piece, then append `batch` with `flags` to the stream."""
        epoch = _hex(batch.epoch)
        began, *facts = await self._script("replace", "begin", slot, epoch, "" if expected is None else expected)
        if began != 1:
            return bool(began)
        bits, holds_some = facts
        wanted = np.sort(keys)
        if holds_some:
            pieces = [(first, behind, _within(wanted, first, behind, bits)) for first, behind in self._pieces(bits, await self.chunks())]
        else:
            pieces = [(0, 0, wanted[i : i + _KEYS_A_PIECE]) for i in range(0, len(wanted), _KEYS_A_PIECE)]
        for first, behind, some in pieces:
            if not (await self._script("replace", "piece", slot, epoch, first, behind, pack_keys(some)))[0]:
                return False
        end = await self._script("replace", "end", slot, epoch, batch.sequence, flags, pack_keys(batch.added), self._kept_batches)
        return bool(end[0])

    def _pieces(self, bits: int, chunks: int) -> list[tuple[int, int]]:
        """Stretches of buckets, each with a few thousand chunks or a thousand buckets: a few milliseconds of Redis' time."""
        buckets = 1 << bits if bits else 0
        step = max(1, min(1_024, _CHUNKS_A_PIECE * max(1, buckets) // max(1, chunks)))
        return [(first, min(first + step, buckets)) for first in range(0, buckets, step)]

    async def _script(self, name: str, *arguments: str | bytes | int) -> Any:
        return await self._bounded(self._scripts[name](keys=[self._meta], args=arguments), self._timeout_s)

    async def _bounded(self, call: Awaitable[Any], timeout_s: float) -> Any:
        return await bounded(call, timeout_s, f"{self._prefix}*")


def _hex(epoch: int) -> str:
    return f"{epoch:016x}"


def _pairs(flat: list[bytes]) -> dict[int, bytes]:
    """A flat [slot, value, ...] answer as a dict."""
    return {int(flat[i]): flat[i + 1] for i in range(0, len(flat), 2)}


def _heads(flat: list[bytes]) -> dict[int, tuple[int, int]]:
    """Epoch and last sequence by slot."""
    heads = {}
    for slot, head in _pairs(flat).items():
        epoch, sequence, _ = head.split(b":")
        heads[slot] = (int(epoch, 16), int(sequence))
    return heads


def _tail_entry(name: bytes, fields: dict[bytes, bytes], now_ms: float) -> TailEntry:
    flags = int(fields[b"f"])
    batch = KvBatch(
        int(fields[b"e"], 16),
        int(fields[b"q"]),
        added=unpack_keys(fields[b"a"]) if fields[b"a"] else NO_KEYS,
        removed=unpack_keys(fields[b"r"]) if fields[b"r"] else NO_KEYS,
        cleared=bool(flags & _CLEARED),
    )
    age_s = max(0.0, (now_ms - int(fields[b"t"])) / 1_000)
    return TailEntry(name.split(b"-")[0].decode(), int(fields[b"s"]), batch, age_s, bool(flags & _REPUBLISHED))


def _within(wanted: NDArray[np.uint64], first: int, behind: int, bits: int) -> Keys:
    """The keys, of all `wanted` sorted, that belong into buckets first..behind-1 (bucket = top bits)."""
    start, end = first << (64 - bits), behind << (64 - bits)
    low = int(np.searchsorted(wanted, np.uint64(start)))
    high = len(wanted) if end >> 64 else int(np.searchsorted(wanted, np.uint64(end)))
    return wanted[low:high]
