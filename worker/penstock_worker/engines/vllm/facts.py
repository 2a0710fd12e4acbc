"""What a running vLLM says of itself, as the contract's EngineInfo: asked over HTTP, read from its metrics and its folder.

`engine` calls `engine_info` once it is healthy. Where a version says nothing, the declared profile and vLLM's defaults stand in.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from xxhash import xxh3_64_hexdigest

from penstock_worker.engine import EngineInfo
from penstock_worker.engines.vllm.config import VllmConfig
from penstock_worker.engines.vllm.scrape import read_gauges
from penstock_worker.worker_host import StartFailed

Get = Callable[[str], Awaitable[bytes]]
"""The body of a GET on the engine. Raises UpstreamError."""
_DEFAULT_BLOCK_TOKENS = 16
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_CACHE_LINE = "vllm:cache_config_info"


class _Card(msgspec.Struct):
    id: str
    parent: str | None = None
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


class _Version(msgspec.Struct):
    version: str = "unknown"


async def engine_info(config: VllmConfig, get: Get, *, exact: bool) -> EngineInfo:
    """`exact`: its KV events are heard and its prompts can be laid out. Raises StartFailed for a server that is no vLLM."""
    try:
        cards = msgspec.json.decode(await get("/v1/models"), type=_Cards).data
        version = msgspec.json.decode(await get("/version"), type=_Version).version
    except msgspec.DecodeError as error:
        raise StartFailed(f"the engine's own words cannot be read: {error}") from None
    names = [card.id for card in cards]
    if config.model not in names:
        raise StartFailed(f"the engine serves {', '.join(names) or 'nothing'}; allowed: {config.model!r}, this worker's model")
    metrics = (await get("/metrics")).decode("utf-8", "replace")
    gauges = read_gauges(metrics)
    block_tokens = gauges.block_tokens or _DEFAULT_BLOCK_TOKENS
    longest = next(card.max_model_len for card in cards if card.id == config.model)
    kv_tokens = gauges.blocks * block_tokens or config.profile.kv_tokens
    return EngineInfo(
        model=config.model,
        profile=config.profile,
        kv_total_tokens=kv_tokens,
        block_tokens=block_tokens,
        max_model_tokens=min(longest or kv_tokens, kv_tokens),
        connector=config.connector,
        kv_generation=generation(config, version, block_tokens, metrics),
        capabilities=("chat", "completions"),
        adapters=tuple(sorted(card.id for card in cards if card.parent == config.model and card.id != config.model)),
        exact=exact,
    )


def generation(config: VllmConfig, version: str, block_tokens: int, metrics: str) -> str:
    """What KV bytes depend on, as one word: engine version, model files, block size, KV type, connector."""
    folder = Path(config.folder) if config.folder else None
    parts = [version, config.model, str(block_tokens), config.connector, _cache_type(metrics)]
    if folder is not None and (folder / "config.json").exists():
        parts.append((folder / "config.json").read_text(encoding="utf-8"))
        parts += sorted(
            f"{path.name}:{path.stat().st_size}" for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".gguf")
        )
    return f"vllm-{version}-{xxh3_64_hexdigest(chr(0).join(parts).encode())[:12]}"


def _cache_type(metrics: str) -> str:
    """The label `cache_dtype` of the engine's cache settings; empty where it tells none."""
    for line in metrics.splitlines():
        if line.startswith(_CACHE_LINE):
            return line.partition('cache_dtype="')[2].partition('"')[0]
    return ""
