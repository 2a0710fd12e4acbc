"""What a running vLLM says of itself, as the contract's EngineInfo: asked over HTTP, read from its metrics and its folder.

`dialect` calls `engine_info` once it is healthy. Where a version says nothing, the declared profile and vLLM's defaults stand in.
"""

import msgspec

from penstock_worker.engine import EngineInfo
from penstock_worker.engines.server.config import ServerConfig
from penstock_worker.engines.server.dialect import Get, Ports, read_cards
from penstock_worker.engines.server.generation import generation
from penstock_worker.engines.server.scrape import Gauges, labels_of, samples
from penstock_worker.engines.vllm.command import engine_id
from penstock_worker.worker_host import StartFailed

_DEFAULT_BLOCK_TOKENS = 16
_CACHE = "vllm:cache_config_info"
_WANTED = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_usage_ratio",
    "vllm:gpu_cache_usage_perc": "kv_usage_ratio",
    "vllm:nixl_bytes_transferred_sum": "pulled_bytes",
    "vllm:nixl_num_kv_expired_reqs_total": "expired",
    "vllm:nixl_num_failed_transfers_total": "failed_transfers",
}


class _Version(msgspec.Struct):
    version: str = "unknown"


def read_gauges(text: str) -> Gauges:
    """Sums over an engine's ranks, but the largest of their KV usages."""
    sums: dict[str, float] = {}
    block_tokens = blocks = 0
    for family, labels, value in samples(text):
        if family == _CACHE:
            named = labels_of(labels)
            block_tokens, blocks = _whole(named.get("block_size")), _whole(named.get("num_gpu_blocks"))
        elif name := _WANTED.get(family):
            sums[name] = max(sums.get(name, 0.0), value) if name == "kv_usage_ratio" else sums.get(name, 0.0) + value
    return msgspec.structs.replace(Gauges(), **sums, block_tokens=block_tokens, blocks=blocks)


async def engine_info(config: ServerConfig, get: Get, ports: Ports | None, *, exact: bool) -> EngineInfo:
    """See Dialect.info."""
    card, adapters = read_cards(await get("/v1/models"), config.model)
    try:
        version = msgspec.json.decode(await get("/version"), type=_Version).version
    except msgspec.DecodeError as error:
        raise StartFailed(f"the engine's own words cannot be read: {error}") from None
    metrics = (await get("/metrics")).decode("utf-8", "replace")
    gauges = read_gauges(metrics)
    block_tokens = gauges.block_tokens or _DEFAULT_BLOCK_TOKENS
    kv_tokens = gauges.blocks * block_tokens or config.profile.kv_tokens
    return EngineInfo(
        model=config.model,
        profile=config.profile,
        kv_total_tokens=kv_tokens,
        block_tokens=block_tokens,
        max_model_tokens=min(card.max_model_len or kv_tokens, kv_tokens),
        connector=config.connector,
        connector_facts=_connector_facts(config, ports),
        kv_generation=generation("vllm", version, config, [str(block_tokens), _cache_type(metrics)]),
        capabilities=("chat", "completions"),
        adapters=adapters,
        exact=exact,
    )


def _connector_facts(config: ServerConfig, ports: Ports | None) -> dict[str, str | int]:
    """What the router's decode bodies need. NIXL's answers say it themselves."""
    if config.connector != "mooncake" or ports is None:
        return {}
    host = f"[{config.side_host}]" if ":" in config.side_host else config.side_host
    return {"remote_bootstrap_addr": f"http://{host}:{ports.side}", "remote_engine_id": engine_id(ports)}


def _cache_type(metrics: str) -> str:
    """The label `cache_dtype` of the engine's cache settings; empty where it tells none."""
    return next((labels_of(labels).get("cache_dtype", "") for family, labels, _ in samples(metrics) if family == _CACHE), "")


def _whole(written: str | None) -> int:
    return int(written) if written is not None and written.isdecimal() else 0
