"""What `penstock up` was asked to start: checked values, and the settings they mean for workers and router. Pure.

`up` carries it out. Nothing here looks at the machine.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from penstock_core.endpoint import Role
from penstock_core.errors import PenstockError
from penstock_router.policy_names import parse_policy
from penstock_worker.config import WorkerConfig

ROUTER_DRAIN_S = 3
WORKER_DRAIN_S = 5.0
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


class UpPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The command line of `penstock up`."""

    prefill: int = 1
    decode: int = 2
    both: int = 0
    engine: str = "sim"
    model: str = "sim"
    """With another engine than `sim` the model's folder; its last name is what clients put in `model`, unless `served_name` is given."""
    served_name: str = ""
    engine_python: str = ""
    engine_args: tuple[str, ...] = ()
    engine_env: dict[str, str] = {}
    profile: str = "polynomial-reference"
    speed: float = 1.0
    host: str = "auto"
    """`auto`, `ray` or `process`."""
    redis_url: str = ""
    """Empty: start one."""
    port: int = 8000
    policy: str = "target-misses"
    api_keys: str = ""
    """Path; empty: no authentication."""

    def __post_init__(self) -> None:
        if self.prefill + self.decode + self.both == 0:
            raise PenstockError("prefill, decode and both are 0; allowed: at least one worker")
        if self.decode + self.both == 0:
            raise PenstockError("decode and both are 0; allowed: at least one worker that decodes (--decode 1 or --both 1)")
        if self.prefill + self.both == 0:
            raise PenstockError("prefill and both are 0; allowed: at least one worker that prefills (--prefill 1 or --both 1)")
        parse_policy(self.policy)
        if self.engine != "sim" and not (Path(self.model) / "config.json").is_file():
            raise PenstockError(
                f"model is {self.model!r}; allowed with engine {self.engine}: a folder with config.json, tokenizer.json and weights"
            )
        if self.engine == "sim" and (self.engine_python or self.engine_args or self.engine_env):
            raise PenstockError("engine_python, engine_arg and engine_env are for --engine vllm and --engine sglang")
        if self.redis_url and not self.redis_url.startswith(_REDIS_SCHEMES):
            shown = self.redis_url.rpartition("@")[2]  # what stands before it may be a password
            raise PenstockError(f"redis is {shown!r}; allowed: redis://host:port/db, rediss://host:port/db or unix://path?db=0")

    @property
    def desired(self) -> dict[str, int]:
        """Replicas by pool; a pool is named by its role, and one of 0 replicas is left out."""
        wanted = {Role.PREFILL.value: self.prefill, Role.DECODE.value: self.decode, Role.BOTH.value: self.both}
        return {pool: replicas for pool, replicas in wanted.items() if replicas}

    @property
    def name(self) -> str:
        """What clients put in `model`."""
        return self.served_name or (self.model if self.engine == "sim" else Path(self.model).resolve().name)

    @property
    def start_s(self) -> float:
        """How long one worker may take to come up."""
        return 120.0 if self.engine == "sim" else 900.0

    @property
    def ready_s(self) -> float:
        """How long all of them may take, with a start or two that fails."""
        return 1.5 * self.start_s

    @property
    def workers(self) -> int:
        return sum(self.desired.values())

    def pools(self) -> dict[str, WorkerConfig]:
        """Settings of each pool's workers. Raises ConfigError for a model name or a profile that cannot be used."""
        common = WorkerConfig(
            model=self.name,
            profile=self.profile,
            speed=self.speed,
            drain_s=WORKER_DRAIN_S,
            engine=self.engine,
            model_folder="" if self.engine == "sim" else str(Path(self.model).resolve()),
            engine_python=self.engine_python,
            engine_args=self.engine_args,
            engine_env=self.engine_env,
        )
        return {pool: msgspec.structs.replace(common, role=Role(pool), pool=pool) for pool in self.desired}

    def router_options(self) -> Sequence[str]:
        """Words for `penstock router`; secrets and the Redis URL go by environment."""
        keys = ("--api-keys", self.api_keys) if self.api_keys else ()
        settings = ("--set", f"drain_s={ROUTER_DRAIN_S}", "--set", "explain_every=1")
        return ("--port", str(self.port), "--model", self.name, "--policy", self.policy, *settings, *keys)
