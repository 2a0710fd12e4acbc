"""How a worker's record and load are written in the shared store, and how the store's keys are named.

`redis` encodes and decodes with it, nobody else. The forms tolerate unknown fields, so an older router reads a newer
worker's record; what it must not know is when anything is written.
"""

import msgspec
from penstock_core.endpoint import Load, WorkerRecord

encode_record = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(WorkerRecord).decode
_decode_load = msgspec.msgpack.Decoder(Load).decode

encode_load = encode_record


def decode_record(wire: bytes) -> WorkerRecord | None:
    """A worker's record, or None when it is of a form this version cannot read (that worker is left out, not the others)."""
    try:
        return _decode_record(wire)
    except (msgspec.DecodeError, ValueError):
        return None


def decode_load(wire: bytes | None) -> Load | None:
    """A worker's load; None when there is none or it is of a form this version cannot read."""
    if not wire:
        return None
    try:
        return _decode_load(wire)
    except msgspec.DecodeError:
        return None


def key_prefix(model: str) -> str:
    """Prefix of all keys of a served model. The braces make it one hash tag, so one slot of a Redis Cluster.

    Braces in the name itself would move the tag: they are written as `%7B` and `%7D`, and `%` as `%25`.
    """
    tag = model.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return f"penstock:{{{tag}}}:"
