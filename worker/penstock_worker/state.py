"""What a worker says of itself on `GET /penstock/state`, and its wire form.

`host` answers with it; `fleet` and `penstock status` read it. Unknown fields are passed over, so either side may be newer.
"""

import msgspec
from penstock_core.endpoint import Load, Role, StartUp


class WorkerState(msgspec.Struct, frozen=True, kw_only=True):
    """One worker, now."""

    id: str
    model: str
    role: Role
    pool: str
    url: str
    epoch: str
    """16 hex digits; another epoch is another process with an empty cache."""
    load: Load
    draining: bool
    drained: bool
    """No answer is running and the registry has been left: the process may be ended without cutting anything."""
    exchanges: int
    """Answers that clients are still reading."""
    profile: str
    generation: str
    """What KV bytes depend on."""
    restarts: int = 0
    exact: bool = True
    """False once the engine's own counts have disagreed too often with what the worker follows."""
    start_up: StartUp | None = None
    """None before it is ready."""


_decoder = msgspec.json.Decoder(WorkerState)


def encode_worker_state(state: WorkerState) -> bytes:
    return msgspec.json.encode(state)


def decode_worker_state(written: bytes) -> WorkerState:
    """Raises msgspec.DecodeError for anything else."""
    return _decoder.decode(written)
