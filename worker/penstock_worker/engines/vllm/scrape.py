"""Reads vLLM's own metrics: the few figures that the worker reports, out of Prometheus' text form. Pure.

`engine` scrapes once a second and calls `read_gauges`. Unknown families are passed over; a missing one is 0.
"""

import re

import msgspec

_LINE = re.compile(r"^(vllm:[a-z_]+)(?:\{(.*)\})? ([0-9.eE+-]+|NaN)$", re.MULTILINE)
_WANTED = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_usage_ratio",
    "vllm:gpu_cache_usage_perc": "kv_usage_ratio",
    "vllm:nixl_bytes_transferred_sum": "pulled_bytes",
    "vllm:nixl_num_kv_expired_reqs_total": "expired",
    "vllm:nixl_num_failed_transfers_total": "failed_transfers",
}
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')


class Gauges(msgspec.Struct, frozen=True, kw_only=True):
    """As of one scrape; counters since the engine's start."""

    running: float = 0.0
    waiting: float = 0.0
    kv_usage_ratio: float = 0.0
    pulled_bytes: float = 0.0
    expired: float = 0.0
    failed_transfers: float = 0.0
    block_tokens: int = 0
    blocks: int = 0
    """0: the engine does not say."""


def read_gauges(text: str) -> Gauges:
    """Sums over an engine's ranks, but the largest of their KV usages."""
    sums: dict[str, float] = {}
    block_tokens = blocks = 0
    for family, labels, value in _LINE.findall(text):
        if family == "vllm:cache_config_info":
            named = dict(_LABEL.findall(labels))
            block_tokens, blocks = _whole(named.get("block_size")), _whole(named.get("num_gpu_blocks"))
            continue
        name = _WANTED.get(family)
        if name is None or value == "NaN":
            continue
        number = float(value)
        sums[name] = max(sums.get(name, 0.0), number) if name == "kv_usage_ratio" else sums.get(name, 0.0) + number
    return msgspec.structs.replace(Gauges(), **sums, block_tokens=block_tokens, blocks=blocks)


def _whole(written: str | None) -> int:
    return int(written) if written is not None and written.isdecimal() else 0
