"""Everything that can be set about a router: one frozen value per process, loaded once, each setting with unit, default, range.

`load_config` reads a YAML or JSON file and lays the command line's settings over it; secrets come from the environment or
from files. A setting that is wrong is named with its value and what is allowed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from penstock_core.endpoint import Role
from penstock_core.prompt import DEFAULT_CHUNK_BYTES
from penstock_core.slo import Slo
from penstock_process.secrets import ADMIN_KEY, CHUNK_SECRET, FLEET_TOKEN, Unprinted, parse_chunk_secret, read_secret
from penstock_process.settings import LOG_LEVELS, ConfigError, check_one_of, check_ranges, load_settings, to_settings

from penstock_router.admission.claim import LineLimits
from penstock_router.policy_names import parse_policy

CONNECTORS = ("none", "nixl", "sglang", "mooncake")


class GivenEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An OpenAI-compatible server given by hand: `URL[,role=both,model=NAME,connector=nixl,id=NAME]`."""

    url: str
    """`http://host:port`, without a path."""
    role: Role = Role.BOTH
    model: str = ""
    """Empty: asked from the server with GET /v1/models."""
    connector: str = ""
    """How KV goes from prefill to decode servers; empty: `nixl` for a role of its own, `none` for `both`."""
    connector_facts: dict[str, str | int] = {}
    id: str = ""
    """Empty: host:port."""
    capabilities: tuple[str, ...] = ("chat", "completions")

    def __post_init__(self) -> None:
        if not self.url.startswith("http://") or "/" in self.url.removeprefix("http://").rstrip("/"):
            raise ConfigError(f"endpoint url is {self.url!r}; allowed: http://host:port")
        if self.connector and self.connector not in CONNECTORS:
            raise ConfigError(f"endpoint connector is {self.connector!r}; allowed: {', '.join(CONNECTORS)}")

    @property
    def hands_over_by(self) -> str:
        """The connector in force."""
        return self.connector or ("none" if self.role is Role.BOTH else "nixl")


class ServedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model whose endpoints are found in the registry."""

    name: str
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    """32..65536; the workers of the model must use the same."""
    slo: Slo | None = None
    """Targets of a request that names none. Absent: those of the ModelService, else 2 s and 50 ms."""

    def __post_init__(self) -> None:
        if not self.name or any(letter in self.name for letter in "{}"):
            raise ConfigError(f"model name is {self.name!r}; allowed: a name without braces")
        if not 32 <= self.chunk_bytes <= 65_536:
            raise ConfigError(f"chunk_bytes of {self.name} is {self.chunk_bytes}; allowed: 32..65536")


class Secrets(Unprinted, frozen=True):
    """What must never be printed or logged; its repr says only what is set."""

    chunk_secret: int = 0
    """Seed of the chunk keys, 0..2**64-1; the same in the whole fleet."""
    fleet_token: str = ""
    """Sent to workers with salts and `/penstock/*`; empty: none."""
    admin_key: str = ""
    """Asked for by `/admin/*`; empty: `/admin/*` answers on loopback addresses only."""


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A router's settings; RANGES holds what is allowed for each number."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one."""
    redis_url: str = ""
    """Empty: no registry, only `endpoints`."""
    models: tuple[ServedModel, ...] = ()
    """Followed in the registry. Empty: every model that has workers there."""
    endpoints: tuple[GivenEndpoint, ...] = ()
    policy: str = "target-misses"
    """target-misses, round-robin, least-request, prefix-affinity, random, power-of-two, lmetric, conductor or block-cost[:SCALE]."""
    fitted_profiles: bool = True
    """Correct the profiles that workers declare by the passes that are seen; false: take them as they are."""
    api_keys: str = ""
    """Path; empty: no authentication."""
    forward_authorization: bool = False
    """Send the client's Authorization header on to endpoints given by hand."""
    log_level: str = "info"
    deadline_s: float = 600.0
    """Of a whole request, all legs and attempts."""
    head_timeout_s: float = 300.0
    """Of one attempt until the upstream's response head, which waits for the engine's first output."""
    stall_timeout_s: float = 120.0
    """Longest silence of an upstream inside an answer."""
    attempts: int = 4
    """Placements tried for one request before its first byte."""
    active_requests: int = 8192
    """Under way in all, those that wait for room included."""
    active_requests_per_model: int = 4096
    """Placed at once; more of them wait for room."""
    queued_requests_per_model: int = 1024
    """May wait for room; 0: none ever waits, and nothing is refused for its latency target."""
    queue_timeout_s: float = 30.0
    """Longest wait for room."""
    held_requests_per_model: int = 256
    """May wait for a first replica of a model that an autoscaler starts from zero; 0: none does."""
    hold_s: float = 300.0
    """Longest wait of a streaming request for a first replica."""
    hold_whole_s: float = 60.0
    """The same of a request whose answer comes in one piece: its client hears nothing meanwhile."""
    hold_comment_s: float = 5.0
    """Between the comments that a streaming client gets while it waits for a first replica."""
    patience: float = 2.0
    """A sheddable request is refused when its predicted TTFT is more than so many times its target."""
    shed_up_to_priority: int = 0
    """Requests of this priority and lower are sheddable; -101: none is."""
    drain_s: float = 30.0
    """How long streams may go on after SIGTERM."""
    unready_s: float = 0.0
    """Between saying not ready and closing the listener, for load balancers to notice."""
    body_bytes: int = 16 * 1024 * 1024
    header_bytes: int = 32 * 1024
    header_timeout_s: float = 10.0
    """For a client to send a whole head."""
    body_timeout_s: float = 30.0
    """For a client to send a whole body: one that sends a byte a second gets 408."""
    idle_timeout_s: float = 75.0
    """Between two requests of a connection."""
    write_stall_timeout_s: float = 60.0
    """How long a client may leave an answer unread."""
    connections: int = 16_384
    """Client connections."""
    connections_per_endpoint: int = 1024
    connect_timeout_s: float = 2.0
    decisions_kept: int = 200
    """Decisions with their candidates kept for `penstock explain`; 0: none, and no candidates are recorded."""
    explain_every: int = 16
    """Every n-th decision keeps its candidates, beyond 16 endpoints one in so many times more; the others their numbers only."""
    probe_s: float = 2.0
    """Between health probes of endpoints given by hand."""
    given_kv_tokens: int = 200_000
    """KV capacity assumed for endpoints given by hand."""
    given_entry_s: float = 600.0
    """How long a prompt placed on an endpoint given by hand is believed cached there."""
    speculative_s: float = 5.0
    """How long a booked chunk counts as held before a KV event confirms it."""
    traffic_window_s: float = 5.0
    """What autoscalers are told of a model's requests covers so long; the same in all routers of a fleet."""

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        check_one_of("log_level", self.log_level, LOG_LEVELS)
        try:
            parse_policy(self.policy)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self.models and not self.redis_url:
            raise ConfigError("models are given without redis_url; allowed: redis_url with models, or endpoints given by hand")


def line_limits(config: RouterConfig) -> LineLimits:
    """How each model's line behaves."""
    return LineLimits(
        started=config.active_requests_per_model,
        waiting=config.queued_requests_per_model,
        patience=config.patience,
        shed_up_to_priority=config.shed_up_to_priority,
        timeout_s=min(config.queue_timeout_s, config.deadline_s),
    )


RANGES: dict[str, tuple[float, float, str]] = {
    "port": (0, 65_535, ""),
    "deadline_s": (0.1, 86_400, "seconds"),
    "head_timeout_s": (0.1, 86_400, "seconds"),
    "stall_timeout_s": (0.1, 86_400, "seconds"),
    "attempts": (1, 16, "placements"),
    "active_requests": (1, 1_000_000, "requests"),
    "active_requests_per_model": (1, 1_000_000, "requests"),
    "queued_requests_per_model": (0, 1_000_000, "requests"),
    "queue_timeout_s": (0.1, 3_600, "seconds"),
    "held_requests_per_model": (0, 1_000_000, "requests"),
    "hold_s": (0.1, 86_400, "seconds"),
    "hold_whole_s": (0.1, 86_400, "seconds"),
    "hold_comment_s": (0.05, 600, "seconds"),
    "patience": (1, 1_000, "times the target"),
    "shed_up_to_priority": (-101, 100, ""),
    "drain_s": (0, 86_400, "seconds"),
    "unready_s": (0, 600, "seconds"),
    "body_bytes": (1024, 1 << 30, "bytes"),
    "header_bytes": (1024, 1 << 20, "bytes"),
    "header_timeout_s": (0.1, 3_600, "seconds"),
    "body_timeout_s": (0.1, 3_600, "seconds"),
    "idle_timeout_s": (0.1, 3_600, "seconds"),
    "write_stall_timeout_s": (0.1, 3_600, "seconds"),
    "connections": (1, 1_000_000, "connections"),
    "connections_per_endpoint": (1, 100_000, "connections"),
    "connect_timeout_s": (0.05, 60, "seconds"),
    "decisions_kept": (0, 100_000, "decisions"),
    "explain_every": (1, 1_000_000, "decisions"),
    "probe_s": (0.05, 600, "seconds"),
    "given_kv_tokens": (1_000, 1_000_000_000, "tokens"),
    "given_entry_s": (1, 86_400, "seconds"),
    "speculative_s": (0.1, 600, "seconds"),
    "traffic_window_s": (0.2, 10, "seconds"),
}
"""What is allowed for each number: lowest, highest, unit."""


def parse_endpoint(written: str) -> GivenEndpoint:
    """An endpoint as the command line writes it: `http://host:port[,role=decode,model=NAME,connector=nixl,id=NAME]`.

    Other `name=value` pairs become connector facts (`bootstrap_port=8998`). Raises ConfigError.
    """
    url, *pairs = written.split(",")
    fields: dict[str, Any] = {"url": url.strip().rstrip("/")}
    facts: dict[str, str | int] = {}
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name or not value:
            raise ConfigError(f"endpoint option is {pair!r}; allowed: name=value")
        if name == "capabilities":
            fields[name] = value.split("+")
        elif name in ("role", "model", "connector", "id"):
            fields[name] = value
        else:
            facts[name] = int(value) if value.isdecimal() else value
    if facts:
        fields["connector_facts"] = facts
    return to_settings(fields, GivenEndpoint, f"endpoint {url}")


def load_config(path: Path | None, settings: Mapping[str, Any]) -> RouterConfig:
    """The file's settings with `settings` (those given on the command line; None: not given) laid over them. Raises ConfigError."""
    return load_settings(path, settings, RouterConfig)


def load_secrets(environ: Mapping[str, str]) -> Secrets:
    """Secrets from PENSTOCK_FLEET_TOKEN, PENSTOCK_ADMIN_KEY and PENSTOCK_CHUNK_SECRET (16 hex digits), or from the file that the
    same name with _FILE names. Raises ConfigError, which never quotes a secret."""
    chunk_secret = parse_chunk_secret(read_secret(environ, CHUNK_SECRET))
    return Secrets(chunk_secret, read_secret(environ, FLEET_TOKEN), read_secret(environ, ADMIN_KEY))
