"""What `penstock up` was asked to start: checked values, and the settings they mean for workers and router. Pure.

`up` carries it out. Nothing here looks at the machine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from penstock_autoscaler.observation import Target
from penstock_core.endpoint import Role
from penstock_core.errors import PenstockError
from penstock_core.slo import DEFAULT_SLO, Slo
from penstock_router.policy_names import parse_policy
from penstock_worker.config import WorkerConfig

from penstock_cli.scaled_pools import Bounds, ScalingSettings, parse_scaling

ROUTER_DRAIN_S = 3
WORKER_DRAIN_S = 5.0
"""Of all workers at the end; nobody waits longer for Ctrl-C."""
SCALE_IN_DRAIN_S = 600.0
"""Of a worker that the autoscaler takes away: no stream is cut for that."""
DEFAULT_ATTAINMENT = 0.95
DEFAULT_SCALING = parse_scaling({})
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
    bounds: dict[str, Bounds] = {}
    """Pools that the autoscaler sizes; empty: there is none."""
    scaling: ScalingSettings = DEFAULT_SCALING
    slo: Slo | None = None
    """Targets of requests that name none; None: the router's own."""
    attainment_ratio: float = DEFAULT_ATTAINMENT
    autoscaler_port: int = 0
    """Of its metrics; 0: any free one."""

    def __post_init__(self) -> None:
        if self.prefill + self.decode + self.both == 0:
            raise PenstockError("prefill, decode and both are 0; allowed: at least one worker")
        if self.decode + self.both == 0:
            raise PenstockError("decode and both are 0; allowed: at least one worker that decodes (--decode 1 or --both 1)")
        if self.prefill + self.both == 0:
            raise PenstockError("prefill and both are 0; allowed: at least one worker that prefills (--prefill 1 or --both 1)")
        for pool, bounds in self.bounds.items():
            replicas = self.desired.get(pool, 0)
            if not max(1, bounds.least) <= replicas <= bounds.most:
                raise PenstockError(f"{pool} is {replicas}; allowed with --autoscale {pool}: {max(1, bounds.least)}..{bounds.most}")
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
            drain_s=SCALE_IN_DRAIN_S,
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
        settings = [f"drain_s={ROUTER_DRAIN_S}", "explain_every=1"]
        if self.slo is None:
            models = ["--model", self.name]
        else:
            models, settings = [], [*settings, "models=" + msgspec.json.encode([{"name": self.name, "slo": self.slo}]).decode()]
        if self.bounds:
            settings.append(f"traffic_window_s={self.scaling.window_s:g}")
        laid_over = [word for setting in settings for word in ("--set", setting)]
        return ("--port", str(self.port), *models, "--policy", self.policy, *laid_over, *keys)

    @property
    def target(self) -> Target:
        """What the autoscaler sizes for."""
        return Target(slo=self.slo or DEFAULT_SLO, attainment_ratio=self.attainment_ratio)


def replicas_of(prefill: int | None, decode: int | None, both: int | None, bounds: Mapping[str, Bounds]) -> dict[str, int]:
    """Replicas to start with by pool, from what the command line says (None: nothing): with bounds the named pools at their least,
    without and with nothing said 1 prefill and 2 decode workers."""
    said = {Role.PREFILL.value: prefill, Role.DECODE.value: decode, Role.BOTH.value: both}
    least = {pool: max(1, one.least) for pool, one in bounds.items()} if bounds else {Role.PREFILL.value: 1, Role.DECODE.value: 2}
    return {pool: count if count is not None else least.get(pool, 0) for pool, count in said.items()}


def slo_of(ttft_ms: float | None, itl_ms: float | None) -> Slo | None:
    """The targets that the command line names, the other one as it is by default; None where it names neither."""
    if ttft_ms is None and itl_ms is None:
        return None
    return Slo(
        ttft_s=ttft_ms / 1e3 if ttft_ms is not None else DEFAULT_SLO.ttft_s,
        itl_s=itl_ms / 1e3 if itl_ms is not None else DEFAULT_SLO.itl_s,
    )
