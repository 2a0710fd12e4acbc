"""What a sim engine is told when it is built: one frozen value, checked, with units and ranges.

The host makes it from its own settings; everything in this package reads it and nothing changes it. `speed` is folded
into the profile here (`SimConfig.timing`), so that no other module knows of it.
"""

import msgspec
from penstock_core.profile import DEFAULT_PROFILE, EngineProfile

BLOCK_TOKENS = 64
"""Tokens in one KV block, as in the profiles' sources."""
MAX_MODEL_TOKENS = 131_072
KV_GENERATION = "sim-1"


class SimConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one sim engine."""

    model: str = "sim"
    profile: EngineProfile = DEFAULT_PROFILE
    speed: float = 1.0
    """Times faster than the profile says; 0.01..1000."""
    kv_tokens: int | None = None
    """KV capacity in tokens; None: the profile's. At least two blocks."""
    block_tokens: int = BLOCK_TOKENS
    """1..1024."""
    max_model_tokens: int = MAX_MODEL_TOKENS
    """Longest prompt plus output; never more than the KV capacity."""
    max_waiting: int = 1_024
    """Requests that may wait; one more is refused as full. 1..1,000,000."""
    max_choices: int = 16
    """Largest `n`; 1..128."""
    adapters: tuple[str, ...] = ()
    """Names a client may put in `model` besides the model's own; each has KV of its own."""
    kv_generation: str = KV_GENERATION
    """What KV bytes depend on; workers of different generations make different text and never pull from one another."""
    start_delay_s: float = 0.0
    """Seconds that `start` takes; 0..3600."""
    transfer_host: str = "127.0.0.1"
    """Where decode workers reach this engine's blocks."""
    transfer_bind_host: str = ""
    """Where the block server listens; empty: `transfer_host`."""
    transfer_port: int = 0
    """0: any free port."""
    fleet_token: str = ""
    """Secret shared by the fleet; both ends of a pull prove that they hold it, and it never travels."""
    claim_seconds: float = 30.0
    """How long a finished prefill keeps its blocks for a decode worker; 0.01..3600."""
    pull_timeout_s: float = 10.0
    """Longest wait for a block server's answer; 0.01..600."""
    epoch: int = 0
    """Random 64 bits of this process, part of the engine id; 0: the engine draws its own."""

    def __post_init__(self) -> None:
        _within("speed", self.speed, 0.01, 1000)
        _within("block_tokens", self.block_tokens, 1, 1024)
        _within("max_model_tokens", self.max_model_tokens, 2, 16_777_216)
        _within("max_waiting", self.max_waiting, 1, 1_000_000)
        _within("max_choices", self.max_choices, 1, 128)
        _within("start_delay_s", self.start_delay_s, 0, 3600)
        _within("transfer_port", self.transfer_port, 0, 65_535)
        _within("claim_seconds", self.claim_seconds, 0.01, 3600)
        _within("pull_timeout_s", self.pull_timeout_s, 0.01, 600)
        _within("epoch", self.epoch, 0, 2**64 - 1)
        _within("kv_tokens", self.kv_capacity_tokens, 2 * self.block_tokens, 1 << 32)
        if not self.model:
            raise ValueError("model is ''; allowed: any name that is not empty")

    @property
    def kv_capacity_tokens(self) -> int:
        return self.profile.kv_tokens if self.kv_tokens is None else self.kv_tokens

    @property
    def blocks(self) -> int:
        """KV blocks of the engine."""
        return self.kv_capacity_tokens // self.block_tokens

    @property
    def context_tokens(self) -> int:
        """Longest prompt plus output that this engine can hold at all."""
        return min(self.max_model_tokens, self.blocks * self.block_tokens)

    def timing(self) -> EngineProfile:
        """The profile in seconds of this machine's clock, with the engine's real capacity."""
        profile = msgspec.structs.replace(self.profile, kv_tokens=self.blocks * self.block_tokens)
        if self.speed == 1.0:
            return profile
        return msgspec.structs.replace(
            profile.at_speed(self.speed),
            transfer_bytes_per_s=profile.transfer_bytes_per_s * self.speed,
            start_s=profile.start_s / self.speed,
        )


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{field} is {value!r}; allowed: {low} to {high}")
