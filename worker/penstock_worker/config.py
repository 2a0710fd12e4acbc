"""Everything that can be set about a worker: one frozen value per process, loaded once, each setting with unit, default, range.

`penstock worker` and the fleet's hosts make a WorkerConfig from settings; `host` reads it. Secrets are kept apart, come from the
environment or from files, and are never printed. Nothing else in this package reads the environment.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from penstock_core.endpoint import Role
from penstock_core.profile import EngineProfile, profile_named
from penstock_core.prompt import DEFAULT_CHUNK_BYTES
from penstock_process.secrets import CHUNK_SECRET, FLEET_TOKEN, REDIS_URL, Unprinted, parse_chunk_secret, read_secret
from penstock_process.settings import LOG_LEVELS, ConfigError, check_one_of, check_ranges, load_settings

ENGINES = ("sim", "vllm", "sglang")
CONNECTORS = ("nixl", "mooncake", "sglang", "none")
ENGINE_HOSTS = ("process", "ray")
RAY_TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105 -- Ray's own name of the variable

_ZMQ_RE = re.compile(r"tcp://[^/\s*]+:[0-9]{1,5}")


class WorkerSecrets(Unprinted, frozen=True):
    """What must never be printed or logged; its repr says only what is set."""

    chunk_secret: int = 0
    """Seed of the chunk keys, 0..2**64-1; the same in the whole fleet."""
    fleet_token: str = ""
    """Asked for by `/penstock/*`, salts and KV pulls; empty: `/penstock/*` on loopback only, and no salts."""
    redis_url: str = ""
    """May hold a password. Empty: no registry, the worker is reached by its URL only."""
    ray_token: str = ""
    """Asked for by the Ray of a gang; empty: that Ray asks for nothing."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker's settings; RANGES holds what is allowed for each number."""

    id: str = "worker-0"
    """Stable over restarts of the same replica; unique in the served model. Letters, digits and `._-`."""
    model: str = "sim"
    """Name that clients put in `model`."""
    role: Role = Role.BOTH
    pool: str = "default"
    engine: str = "sim"
    engine_host: str = "process"
    """`process`: the engine lives in this process; `ray`: in a Ray of the replica's own, which may span Pods (a gang)."""
    gang_size: int = 1
    """`ray` only: processes (Pods) of the replica."""
    gang_rank: int = 0
    """`ray` only: which of them this is; 0 leads, the others join it."""
    gang_leader: str = ""
    """`ray` only: `host:port` of the leader's gang page, for ranks above 0."""
    gang_port: int = 8_001
    """`ray` only: where the gang page (probes, and news for the gang) listens."""
    gang_gpus: int = 0
    """`ray` only: GPUs that each rank of the engine holds."""
    host: str = "127.0.0.1"
    """Address to listen on; empty: every one of the family (IPv4 or IPv6) of `advertise_host`."""
    port: int = 0
    """0: any free one."""
    advertise_host: str = ""
    """Address that routers use, with the bound port; IPv6 without brackets. Empty: the one it listens on."""
    advertise_url: str = ""
    """`http://host:port` that routers use in place of that."""
    profile: str = "polynomial-reference"
    """Declared timing: one of core's profiles."""
    speed: float = 1.0
    """`sim` only: times faster than the profile says."""
    kv_tokens: int | None = None
    """`sim` only: KV capacity; None: the profile's."""
    block_tokens: int = 64
    """`sim` only."""
    max_model_tokens: int = 131_072
    """`sim` only: longest prompt plus output."""
    max_waiting: int = 1_024
    """`sim` only: requests that may wait; one more is refused as full."""
    start_delay_s: float = 0.0
    """`sim` only: how long the engine takes to come up."""
    transfer_host: str = "127.0.0.1"
    """Where decode workers reach this one's blocks."""
    transfer_port: int = 0
    """0: any free one."""
    connector: str = "nixl"
    """`vllm` only: how KV goes from prefill to decode workers; `sim` always speaks `nixl`, `sglang` its own."""
    model_folder: str = ""
    """Not `sim`: folder with weights, tokenizer.json and chat template."""
    model_hub: str = ""
    """Not `sim`: name of the model in a hub, instead of a folder; the engine fetches it, and needs `HF_TOKEN` where it is not public."""
    model_revision: str = ""
    """Not `sim`: of the hub's model; empty: its main one."""
    engine_python: str = ""
    """Not `sim`: interpreter of the environment that has the engine; empty: `python3`."""
    engine_args: tuple[str, ...] = ()
    """Not `sim`: further words for the engine; they win over Penstock's."""
    engine_env: dict[str, str] = {}
    """Not `sim`: further environment of the engine. No secrets: settings are written to files and logs."""
    engine_url: str = ""
    """Not `sim`: `http://host:port` of an engine that already runs, instead of starting one."""
    engine_kv_events: str = ""
    """Not `sim`: `tcp://host:port` where the running engine publishes KV events; empty: its cache stays unknown."""
    engine_kv_replay: str = ""
    """Not `sim`: `tcp://host:port` where it replays them; empty: the port after `engine_kv_events`' own."""
    engine_start_s: float = 900.0
    """Not `sim`: how long the engine may take to come up."""
    kv_claim_seconds: float = 30.0
    """How long the KV of a finished prefill waits for its decode worker."""
    kv_generation: str = ""
    """What KV bytes depend on; empty: the engine's own word."""
    adapters: tuple[str, ...] = ()
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    """The routers of the model must use the same."""
    drain_s: float = 60.0
    """How long running answers may go on after SIGTERM or a drain."""
    body_bytes: int = 16 * 1024 * 1024
    connections: int = 16_384
    inline_body_bytes: int = 16_384
    """A longer body is rendered and hashed off the event loop."""
    announce_path: str = ""
    """File that gets the worker's URL once it is ready, written whole; empty: none."""
    parent_pid: int = 0
    """End when this parent process ends (Linux); 0: live on."""
    restarts: int = 0
    """How often the fleet has restarted this replica; only reported."""
    log_level: str = "info"

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        check_one_of("engine", self.engine, ENGINES)
        check_one_of("connector", self.connector, CONNECTORS)
        check_one_of("engine_host", self.engine_host, ENGINE_HOSTS)
        check_one_of("log_level", self.log_level, LOG_LEVELS)
        if not self.id or not all(letter.isascii() and (letter.isalnum() or letter in "._-") for letter in self.id):
            raise ConfigError(f"id is {self.id!r}; allowed: letters, digits, '.', '_' and '-', at least one")
        if not self.model or any(letter in self.model for letter in "{}"):
            raise ConfigError(f"model is {self.model!r}; allowed: a name without braces")
        if self.advertise_url and not self.advertise_url.startswith(("http://", "https://")):
            raise ConfigError(f"advertise_url is {self.advertise_url!r}; allowed: http://host:port or https://host:port")
        if self.gang_rank >= self.gang_size:
            raise ConfigError(f"gang_rank is {self.gang_rank}; allowed: 0 to {self.gang_size - 1} (gang_size is {self.gang_size})")
        if self.gang_rank and not self.gang_leader.rpartition(":")[2].isdecimal():
            raise ConfigError(f"gang_leader is {self.gang_leader!r}; allowed: host:port where gang_rank is above 0")
        if self.gang_size > 1 and self.engine_host != "ray":
            raise ConfigError(f"gang_size is {self.gang_size}; allowed: 1 where engine_host is {self.engine_host}")
        self.timing()
        if self.engine != "sim":
            self._check_server()

    def _check_server(self) -> None:
        if not (self.model_folder or self.model_hub or self.engine_url):
            raise ConfigError(
                f"model_folder is ''; allowed with engine {self.engine}: the model's folder, model_hub, or engine_url of a running engine"
            )
        if self.model_folder and self.model_hub:
            raise ConfigError(f"model_hub is {self.model_hub!r}; allowed only without model_folder")
        if self.engine == "vllm" and self.connector == "sglang":
            raise ConfigError("connector is 'sglang'; allowed with engine vllm: nixl, mooncake or none")
        if self.engine_url and not self.engine_url.startswith(("http://", "https://")):
            raise ConfigError(f"engine_url is {self.engine_url!r}; allowed: http://host:port or https://host:port")
        for name, address in (("engine_kv_events", self.engine_kv_events), ("engine_kv_replay", self.engine_kv_replay)):
            if address and not _ZMQ_RE.fullmatch(address):
                raise ConfigError(f"{name} is {address!r}; allowed: tcp://host:port")
            if address and not self.engine_url:
                raise ConfigError(f"{name} is {address!r}; allowed only with engine_url: an engine that we start publishes where we say")

    def timing(self) -> EngineProfile:
        """The declared profile. Raises ConfigError for an unknown name."""
        try:
            return profile_named(self.profile)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @property
    def listen_host(self) -> str:
        """Where to listen."""
        return self.host or ("::" if ":" in self.advertise_host else "0.0.0.0")  # noqa: S104 -- asked for by the empty setting

    @property
    def node_address(self) -> str:
        """This Pod's own address, at which the others of its gang reach it."""
        return self.advertise_host or self.host or "127.0.0.1"

    def url(self, bound: str, port: int) -> str:
        """What routers use once the worker listens on `bound`."""
        host = self.advertise_host or bound
        return self.advertise_url or f"http://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the worker."""
        return self.host in ("127.0.0.1", "::1", "localhost")


RANGES: dict[str, tuple[float, float, str]] = {
    "port": (0, 65_535, ""),
    "gang_size": (1, 64, "processes"),
    "gang_rank": (0, 63, ""),
    "gang_port": (0, 65_535, ""),
    "gang_gpus": (0, 64, "GPUs"),
    "speed": (0.01, 1_000, "times"),
    "kv_tokens": (2, 1 << 32, "tokens"),
    "block_tokens": (1, 1_024, "tokens"),
    "max_model_tokens": (2, 16_777_216, "tokens"),
    "max_waiting": (1, 1_000_000, "requests"),
    "start_delay_s": (0, 3_600, "seconds"),
    "transfer_port": (0, 65_535, ""),
    "kv_claim_seconds": (0.01, 3_600, "seconds"),
    "chunk_bytes": (32, 65_536, "bytes"),
    "engine_start_s": (1, 86_400, "seconds"),
    "drain_s": (0, 86_400, "seconds"),
    "body_bytes": (1_024, 1 << 30, "bytes"),
    "connections": (1, 1_000_000, "connections"),
    "inline_body_bytes": (0, 1 << 30, "bytes"),
    "parent_pid": (0, 1 << 31, ""),
    "restarts": (0, 1 << 62, "restarts"),
}
"""What is allowed for each number: lowest, highest, unit."""


def load_config(path: Path | None, settings: Mapping[str, Any]) -> WorkerConfig:
    """The file's settings with `settings` (those given on the command line; None: not given) laid over. Raises ConfigError."""
    return load_settings(path, settings, WorkerConfig)


def load_secrets(environ: Mapping[str, str]) -> WorkerSecrets:
    """Secrets from the environment or the files it names. Raises ConfigError, never quoting one."""
    chunk_secret = parse_chunk_secret(read_secret(environ, CHUNK_SECRET))
    return WorkerSecrets(
        chunk_secret, read_secret(environ, FLEET_TOKEN), read_secret(environ, REDIS_URL), ray_token=read_secret(environ, RAY_TOKEN)
    )


def secrets_environment(secrets: WorkerSecrets) -> dict[str, str]:
    """The inverse of `load_secrets`, for a worker's own process."""
    chunk_secret = f"{secrets.chunk_secret:x}" if secrets.chunk_secret else ""
    own = {CHUNK_SECRET: chunk_secret, FLEET_TOKEN: secrets.fleet_token, REDIS_URL: secrets.redis_url}
    return own | ({RAY_TOKEN: secrets.ray_token} if secrets.ray_token else {})


def ray_environment(secrets: WorkerSecrets) -> dict[str, str]:
    """What Ray's processes are told: to ask for the gang's token where there is one, and to tell nobody that they run."""
    return {"RAY_USAGE_STATS_ENABLED": "0"} | ({"RAY_AUTH_MODE": "token", RAY_TOKEN: secrets.ray_token} if secrets.ray_token else {})
