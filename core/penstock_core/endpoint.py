"""A worker replica as the rest of the fleet sees it: what it said when it registered, and its last reported load.

The worker makes the WorkerRecord, the index stores it, the router places on Endpoints. All immutable; a change is a new
value. Nothing here knows how a record travels or how long a lease is.
"""

from enum import StrEnum

import msgspec

from penstock_core.profile import EngineProfile


class Role(StrEnum):
    """What a worker may do. `2P4D` means two prefill and four decode workers."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"

    @property
    def prefills_for_others(self) -> bool:
        return self is not Role.DECODE

    @property
    def decodes(self) -> bool:
        return self is not Role.PREFILL


class StartUp(msgspec.Struct, frozen=True, kw_only=True):
    """When a worker's start-up came how far, in seconds since 1970 by its own machine's clock. Before `began_s` it was scheduled, and its
    image pulled: whoever asked for it knows when that was."""

    began_s: float
    """Its process was started."""
    listening_s: float
    """Its code was loaded; the engine's start began."""
    ready_s: float
    """The engine had its model loaded and was warm: it could serve."""

    @property
    def process_s(self) -> float:
        return max(0.0, self.listening_s - self.began_s)

    @property
    def engine_s(self) -> float:
        return max(0.0, self.ready_s - self.listening_s)


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself when it registers; the wire form is msgpack of the same fields."""

    id: str
    """Stable over restarts of the same replica (`decode-0`, a Pod's UID); unique in the served model."""
    url: str
    """`http://host:port`."""
    role: Role
    pool: str
    model: str
    """Name that clients put in `model`."""
    epoch: int
    """Random 64 bits of this process: another epoch is another process with an empty cache."""
    profile: EngineProfile
    kv_total_tokens: int
    block_tokens: int
    """Tokens in one KV block of the engine."""
    max_model_tokens: int
    """Longest prompt plus output."""
    kv_generation: str = ""
    """What KV bytes depend on (image, model revision, dtype, connector): only equal ones are paired."""
    connector: str = "nixl"
    """`nixl`, `sglang`, `mooncake`, or `none` where the worker cannot hand KV over."""
    connector_facts: dict[str, str | int] = {}
    """What the connector's bodies need and the worker alone knows: for `sglang` `bootstrap_host` and `bootstrap_port`, for
    `mooncake` `remote_bootstrap_addr` and `remote_engine_id`. Empty for `nixl`, which answers them with each prefill."""
    adapters: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ("chat", "completions")
    """Of `chat`, `completions`, `embeddings`, `responses`, `messages`, `rerank`."""
    exact: bool = True
    """False where chunk keys are interpolated because the engine gives no token offsets."""
    revision: str = ""
    kv_dtype: str = ""
    tokenizer: str = ""
    start_up: StartUp | None = None

    @property
    def serves_whole(self) -> bool:
        """It can prefill and decode a request by itself. vLLM's decode workers can; a divided SGLang does one of both only."""
        return self.role is Role.BOTH or (self.role is Role.DECODE and self.connector != "sglang")

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}; allowed: http://host:port or https://host:port")


class Load(msgspec.Struct, frozen=True):
    """What a worker reports about now. Written with the lease, and in every answer's facts."""

    running: int = 0
    """Requests in the decode batch or in prefill."""
    waiting: int = 0
    prefill_tokens: int = 0
    """Prompt tokens accepted and not yet computed."""
    kv_used_tokens: int = 0
    kv_total_tokens: int = 0
    draining: bool = False


class Endpoint(msgspec.Struct, frozen=True):
    """One worker replica in a router's snapshot.

    `slot` is its number in the index (0..65535), None for an endpoint given by hand without an index.
    """

    record: WorkerRecord
    slot: int | None = None
    load: Load | None = None
    """None until the first report."""
    draining: bool = False

    @property
    def id(self) -> str:
        return self.record.id
