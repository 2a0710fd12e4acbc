"""What a running SGLang says of itself, as the contract's EngineInfo: asked over HTTP, read from its metrics.

`dialect` calls it. Formats as documented: /server_info (older: /get_server_info), /v1/models, and the families of /metrics.
"""

import msgspec
from penstock_core.endpoint import Role
from penstock_dataplane.errors import UpstreamError

from penstock_worker.engine import EngineInfo
from penstock_worker.engines.server.config import ServerConfig
from penstock_worker.engines.server.dialect import Get, Ports, read_cards
from penstock_worker.engines.server.generation import generation
from penstock_worker.engines.server.scrape import Gauges, labels_of, samples
from penstock_worker.worker_host import StartFailed

DEFAULT_BOOTSTRAP_PORT = 8998
_MODE_OF_ROLE = {Role.PREFILL: "prefill", Role.DECODE: "decode", Role.BOTH: "null"}
_RUNNING, _WAITING, _USAGE = "sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"
_PAGE, _PAGES, _CAPACITY = "sglang:page_size", "sglang:num_pages", "sglang:max_total_num_tokens"


class ServerInfo(msgspec.Struct):
    """The part of /server_info that counts; absent where a version does not say."""

    version: str = "unknown"
    disaggregation_mode: str = "null"
    disaggregation_bootstrap_port: int = DEFAULT_BOOTSTRAP_PORT
    page_size: int | None = None
    max_total_num_tokens: int | None = None
    kv_cache_dtype: str | None = None
    dtype: str | None = None


def read_gauges(text: str) -> Gauges:
    """Data-parallel ranks add up, but for their usages; tensor-parallel ranks all tell of the same requests."""
    told: dict[str, dict[str, float]] = {}
    for family, labels, value in samples(text):
        of_ranks = told.setdefault(family, {})
        rank = labels_of(labels).get("dp_rank", "")
        of_ranks[rank] = max(of_ranks.get(rank, 0.0), value)

    def total(family: str) -> float:
        return sum(told.get(family, {}).values())

    page = int(max(told.get(_PAGE, {}).values(), default=0.0))
    return Gauges(
        running=total(_RUNNING),
        waiting=total(_WAITING),
        kv_usage_ratio=max(told.get(_USAGE, {}).values(), default=0.0),
        block_tokens=page,
        blocks=int(total(_PAGES) or (total(_CAPACITY) // page if page else 0)),
    )


def common_names(text: str, gauges: Gauges, model: str) -> str:
    """SGLang's metrics, and before them what every worker's metrics have (protocol.md §3)."""
    escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    labels = f'{{model_name="{escaped}"}}'
    config = f'{{block_size="{gauges.block_tokens}",num_gpu_blocks="{gauges.blocks}"}}'
    figures = {
        "num_requests_running": gauges.running,
        "num_requests_waiting": gauges.waiting,
        "kv_cache_usage_perc": gauges.kv_usage_ratio,
    }
    lines = [f"# TYPE vllm:{name} gauge\nvllm:{name}{labels} {value}\n" for name, value in figures.items()]
    return "".join([*lines, f"# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{config} 1.0\n", text])


async def engine_info(config: ServerConfig, get: Get, ports: Ports | None, *, exact: bool) -> EngineInfo:
    """See Dialect.info."""
    card, adapters = read_cards(await get("/v1/models"), config.model)
    said = await _server_info(get)
    mode = _MODE_OF_ROLE[config.role]
    if said.disaggregation_mode != mode:
        raise StartFailed(
            f"the engine's disaggregation_mode is {said.disaggregation_mode!r}; allowed: {mode!r}, for a worker of role {config.role.value}"
        )
    gauges = read_gauges((await get("/metrics")).decode("utf-8", "replace"))
    block_tokens = gauges.block_tokens or said.page_size or 1
    kv_tokens = gauges.blocks * block_tokens or said.max_total_num_tokens or config.profile.kv_tokens
    return EngineInfo(
        model=config.model,
        profile=config.profile,
        kv_total_tokens=kv_tokens,
        block_tokens=block_tokens,
        max_model_tokens=min(card.max_model_len or kv_tokens, kv_tokens),
        connector="none" if config.role is Role.BOTH else "sglang",
        connector_facts=_bootstrap(config, said, ports) if config.role is Role.PREFILL else {},
        kv_generation=generation("sglang", said.version, config, [str(block_tokens), said.kv_cache_dtype or "", said.dtype or ""]),
        capabilities=("chat", "completions"),
        adapters=adapters,
        exact=exact,
    )


def _bootstrap(config: ServerConfig, said: ServerInfo, ports: Ports | None) -> dict[str, str | int]:
    """Where the two legs of a request meet. An adopted engine says its port itself."""
    port = ports.side if ports is not None else config.side_port or said.disaggregation_bootstrap_port
    return {"bootstrap_host": config.side_host, "bootstrap_port": port}


async def _server_info(get: Get) -> ServerInfo:
    """Raises StartFailed for a server that is no SGLang."""
    try:
        try:
            written = await get("/server_info")
        except UpstreamError:
            written = await get("/get_server_info")  # its name until the end of 2025
        return msgspec.json.decode(written, type=ServerInfo)
    except (UpstreamError, msgspec.DecodeError) as error:
        raise StartFailed(f"the engine's /server_info cannot be read: {error}") from None
