"""What happened to the KV chunks of one worker: added, removed, all gone; numbered, and their wire form.

A worker's publisher writes batches, the index applies them, every mirror tails them. A batch carries the worker's epoch
(random, made by the worker process) and a sequence that grows by one: whoever sees a gap or another epoch reloads that
worker. The module knows nothing of Redis or sockets.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
"""Chunk keys, shape (chunks,)."""

NO_KEYS: Keys = np.zeros(0, dtype=np.uint64)


def pack_keys(keys: Keys) -> bytes:
    """Little-endian uint64, 8 bytes a key."""
    return np.ascontiguousarray(keys, dtype="<u8").tobytes()


def unpack_keys(packed: bytes) -> Keys:
    """The inverse of `pack_keys`. Raises ValueError when the length is no multiple of 8."""
    if len(packed) % 8:
        raise ValueError(f"packed chunk keys are {len(packed)} bytes long; allowed: a multiple of 8")
    return np.frombuffer(packed, dtype="<u8").astype(np.uint64, copy=False)


class KvBatch(msgspec.Struct, frozen=True):
    """One numbered change to the chunks a worker holds: `removed` is taken away first, then `added` is put in.

    `cleared` says that everything held before this batch is gone (both before and with `added`).
    """

    epoch: int
    """Random 64 bits of the worker process, 0..2**64-1."""
    sequence: int
    """1 for the first batch of an epoch, then +1 a batch."""
    added: Keys = msgspec.field(default_factory=lambda: NO_KEYS)
    removed: Keys = msgspec.field(default_factory=lambda: NO_KEYS)
    cleared: bool = False


class KvState(msgspec.Struct, frozen=True):
    """Everything a worker holds after batch `sequence` of `epoch`: what `GET /penstock/kv` and a reload give."""

    epoch: int
    sequence: int
    keys: Keys


_STATE_HEADER_BYTES = 17


def encode_state(state: KvState) -> bytes:
    """Wire form of `GET /penstock/kv`: version byte 1, epoch, sequence (little-endian uint64), packed keys."""
    return b"\x01" + state.epoch.to_bytes(8, "little") + state.sequence.to_bytes(8, "little") + pack_keys(state.keys)


def decode_state(wire: bytes) -> KvState:
    """The inverse of `encode_state`. Raises ValueError for another version or a cut-off body."""
    if len(wire) < _STATE_HEADER_BYTES or wire[0] != 1:
        raise ValueError(f"KV state of version {wire[0] if wire else None} and {len(wire)} bytes; allowed: version 1, 17 bytes or more")
    return KvState(int.from_bytes(wire[1:9], "little"), int.from_bytes(wire[9:17], "little"), unpack_keys(wire[17:]))
