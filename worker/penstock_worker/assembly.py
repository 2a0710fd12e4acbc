"""Builds a worker: which engine a config asks for, and how it joins the registry. The one place that knows all the parts.

`penstock worker` and the Ray actor call `build_host`; tests of one part build it by hand.
"""

from collections.abc import Callable

from penstock_core.endpoint import Load, WorkerRecord
from penstock_kvindex.redis import RedisIndex
from penstock_process.settings import ConfigError

from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.engine import Engine
from penstock_worker.engines.server.config import ServerConfig
from penstock_worker.engines.sim import SimConfig, SimEngine
from penstock_worker.engines.sim.config import KV_GENERATION
from penstock_worker.host import Host, new_epoch
from penstock_worker.kv_follow import Publishing
from penstock_worker.local_kv import LocalKv
from penstock_worker.metrics import WorkerMetrics
from penstock_worker.registration import Registration


def build_host(config: WorkerConfig, secrets: WorkerSecrets) -> Host:
    """A worker under a new epoch, not started yet. Call it in the event loop that will run it."""
    epoch = new_epoch()

    async def join(record: WorkerRecord, load: Callable[[], Load], metrics: WorkerMetrics) -> Publishing:
        if not secrets.redis_url:
            return LocalKv(record.epoch)
        registration = Registration(RedisIndex(secrets.redis_url, config.model, chunk_bytes=config.chunk_bytes), record, load)
        metrics.watch_publish_lag(lambda: registration.lag_s)
        return registration

    return Host(config, secrets, build_engine(config, secrets, epoch), join, epoch=epoch)


def build_engine(config: WorkerConfig, secrets: WorkerSecrets, epoch: int) -> Engine:
    """The engine that `config.engine` names. Raises ConfigError where what it needs is not installed."""
    return _sim(config, secrets, epoch) if config.engine == "sim" else _server(config)


def _server(config: WorkerConfig) -> Engine:
    try:  # its libraries are an extra of their own
        from penstock_worker.engines.server.engine import ServerEngine
        from penstock_worker.engines.sglang.dialect import SgLang
        from penstock_worker.engines.vllm.dialect import Vllm
    except ImportError as error:
        raise ConfigError(f"engine is {config.engine!r}, and {error.name} is not installed: pip install 'penstock[vllm]'") from None
    replay = config.engine_kv_replay
    if config.engine_kv_events and not replay:
        host, _, port = config.engine_kv_events.rpartition(":")
        replay = f"{host}:{int(port) + 1}"
    told = ServerConfig(
        model=config.model,
        profile=config.timing(),
        role=config.role,
        folder=config.model_folder,
        hub=config.model_hub,
        revision=config.model_revision,
        python=config.engine_python or "python3",
        args=config.engine_args,
        env=config.engine_env,
        adopt_url=config.engine_url,
        adopt_events=config.engine_kv_events,
        adopt_replay=replay,
        connector=config.connector,
        side_host=config.transfer_host,
        side_port=config.transfer_port,
        claim_seconds=config.kv_claim_seconds,
        start_s=config.engine_start_s,
        max_waiting=config.max_waiting,
    )
    return ServerEngine(told, SgLang(config.model) if config.engine == "sglang" else Vllm())


def _sim(config: WorkerConfig, secrets: WorkerSecrets, epoch: int) -> Engine:
    sim = SimConfig(
        model=config.model,
        profile=config.timing(),
        speed=config.speed,
        kv_tokens=config.kv_tokens,
        block_tokens=config.block_tokens,
        max_model_tokens=config.max_model_tokens,
        max_waiting=config.max_waiting,
        adapters=config.adapters,
        start_delay_s=config.start_delay_s,
        transfer_host=config.transfer_host,
        transfer_port=config.transfer_port,
        fleet_token=secrets.fleet_token,
        claim_seconds=config.kv_claim_seconds,
        epoch=epoch,
        kv_generation=config.kv_generation or KV_GENERATION,
    )
    return SimEngine(sim)
