"""Decodes the KV events of vLLM and SGLang: positional arrays (older) and maps (since mid-2026), to the contract's BlockEvents.

`subscriber` calls `decode_batch` with each message. Pure. Format: protocol.md §6. What must not be credited is left out: blocks
of another medium than the device's, groups without full attention, other data-parallel ranks, images inside a prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from penstock_worker.engine import AllBlocksCleared, BlockEvent, BlockRemoved, BlockStored

MEDIUM = "GPU"
"""What engines call the device's own memory, also a CPU build's."""
_STORED = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name", "extra_keys", "group_idx")
_REMOVED = ("block_hashes", "medium", "group_idx")
_KINDS: Mapping[str, Sequence[str]] = {"BlockStored": _STORED, "BlockRemoved": _REMOVED, "AllBlocksCleared": ()}
_FULL_ATTENTION = frozenset({None, "full_attention", "mla_attention"})
_MASK = (1 << 64) - 1

_decode = msgspec.msgpack.Decoder().decode


class Unreadable(ValueError):
    """A message that is not a batch of KV events."""


class Batch(msgspec.Struct, frozen=True):
    """The events of one message that count, and how many did not."""

    events: list[BlockEvent]
    passed_over: int
    block_tokens: int | None = None
    """As the engine's events say; None where none said it."""


def decode_batch(payload: bytes, rank: int = 0) -> Batch:
    """Events of one message, in order. Raises Unreadable."""
    try:
        written = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(str(error)) from None
    if isinstance(written, dict):
        raw, said_rank = written.get("events"), written.get("data_parallel_rank")
    elif isinstance(written, list) and len(written) >= 2:
        raw, said_rank = written[1], written[2] if len(written) > 2 else None
    else:
        raise Unreadable(f"a batch is {type(written).__name__}; allowed: an array or a map")
    if not isinstance(raw, list):
        raise Unreadable(f"the events of a batch are {type(raw).__name__}; allowed: an array")
    if said_rank is not None and said_rank != rank:
        return Batch([], len(raw))
    events: list[BlockEvent] = []
    size: int | None = None
    for one in raw:
        kind, fields = _named(one)
        size = fields.get("block_size") or size
        event = _event(kind, fields)
        if event is not None:
            events.append(event)
    return Batch(events, len(raw) - len(events), size)


def block_hash(written: Any) -> int:
    """64 bits of an engine's name for a block: a number of either sign, or bytes (the last 8 count)."""
    if isinstance(written, int):
        return written & _MASK
    if isinstance(written, bytes) and written:
        return int.from_bytes(written[-8:], "big")
    raise Unreadable(f"a block hash is {type(written).__name__}; allowed: a number or bytes")


def _named(one: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(one, dict):
        return str(one.get("type")), one
    if isinstance(one, list) and one:
        return str(one[0]), dict(zip(_KINDS.get(str(one[0]), ()), one[1:], strict=False))
    raise Unreadable(f"an event is {type(one).__name__}; allowed: an array or a map")


def _event(kind: str, fields: Mapping[str, Any]) -> BlockEvent | None:
    """None for an event that does not count, or of a kind that we do not know."""
    if kind == "AllBlocksCleared":
        return AllBlocksCleared()
    if kind not in _KINDS or not _counts(fields):
        return None
    hashes = fields.get("block_hashes")
    if not isinstance(hashes, list):
        raise Unreadable(f"block_hashes is {type(hashes).__name__}; allowed: an array")
    if kind == "BlockRemoved":
        return BlockRemoved(tuple(block_hash(one) for one in hashes))
    whose = _whose(fields)
    token_ids, parent = fields.get("token_ids"), fields.get("parent_block_hash")
    if whose is None or not isinstance(token_ids, list) or not all(isinstance(one, int) and 0 <= one < 1 << 32 for one in token_ids):
        return None
    size = fields.get("block_size")
    if not isinstance(size, int) or len(token_ids) != size * len(hashes):
        return None
    names = tuple(block_hash(one) for one in hashes)
    return BlockStored(names, None if parent is None else block_hash(parent), tuple(token_ids), whose[0], whose[1])


def _counts(fields: Mapping[str, Any]) -> bool:
    medium = fields.get("medium")
    if medium is not None and str(medium).upper() != MEDIUM:
        return False
    if fields.get("locality") == "REMOTE":
        return False
    return not fields.get("group_idx") and fields.get("kv_cache_spec_kind") in _FULL_ATTENTION


def _whose(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """(salt, adapter) of a stored event; None where its blocks depend on more than their tokens (images, embeddings)."""
    adapter = fields.get("lora_name") or ""
    if not adapter and fields.get("lora_id") is not None:
        return None  # an adapter without a name: whose it is cannot be told
    salt = ""
    for keys in fields.get("extra_keys") or ():
        for key in keys or ():
            if key == adapter and adapter:
                continue
            if not isinstance(key, str) or salt not in ("", key):
                return None
            salt = key
    return salt, str(adapter)
