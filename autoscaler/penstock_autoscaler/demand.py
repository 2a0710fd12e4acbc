"""How many replicas the traffic asks for by arithmetic alone: the fluid bound.

Pure; `scaler` calls it. Seconds of prefill that arrive a second, decode streams that are open at once, and the KV they hold, each against
what one replica has. It knows no queues: sizes near it are tried in a replay where there is one.
"""

import msgspec
import numpy as np
from penstock_core.endpoint import Role
from penstock_core.slo import Slo
from penstock_core.traffic import Window

from penstock_autoscaler.observation import Pool

BUSY_RATIO = 0.8
"""Share of a replica's time, or of its KV, that can be planned with: beyond it queues grow out of proportion."""


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """What arrives, on average."""

    rate: float
    """Requests a second."""
    prompt_tokens: float
    hit_tokens: float
    output_tokens: float


def mix(traffic: Window) -> Mix:
    """Of a window; hits and outputs as measured on the requests that ended in it, zero where none did."""
    ended = traffic.ended
    share = float(ended.hit_tokens.sum() / max(1, ended.prompt_tokens.sum()))
    prompt = traffic.prompt_tokens if len(traffic.prompt_tokens) else ended.prompt_tokens
    mean = float(prompt.mean()) if len(prompt) else 0.0
    return Mix(
        rate=traffic.arrivals / max(1e-9, traffic.length_s),
        prompt_tokens=mean,
        hit_tokens=share * mean,
        output_tokens=float(ended.output_tokens[ended.ok].mean()) if ended.ok.any() else 0.0,
    )


def fluid(asked: Mix, pools: tuple[Pool, ...], slo: Slo) -> dict[str, float]:
    """Replicas by pool that the mix keeps busy for BUSY_RATIO of their time, not rounded.

    Pools that do both take whole requests; where there are dedicated ones, prompts go to those that prefill, answers to those that decode.
    """
    needed = {}
    for pool in pools:
        prefill = _prefill(asked, pool) if pool.role is not Role.DECODE else 0.0
        decode = _decode(asked, pool, slo, prefill) if pool.role is not Role.PREFILL else 0.0
        needed[pool.name] = max(prefill, decode)
    return needed


def _prefill(asked: Mix, pool: Pool) -> float:
    seconds = pool.profile.prefill_s(round(asked.prompt_tokens - asked.hit_tokens), round(asked.hit_tokens))
    return asked.rate * seconds / BUSY_RATIO


def _decode(asked: Mix, pool: Pool, slo: Slo, prefill: float) -> float:
    """Replicas whose streams keep the ITL target and whose KV holds them, beside `prefill` replicas' worth of prompts."""
    if asked.output_tokens <= 0.0 or asked.rate <= 0.0:
        return 0.0
    context = asked.prompt_tokens + asked.output_tokens / 2.0
    for replicas in np.arange(1, 4 * pool.max_replicas + 1) / 4.0:
        rate = asked.rate / replicas
        left = 1.0 - (prefill * BUSY_RATIO / replicas if pool.role is Role.BOTH else 0.0)
        streams = 0.0
        for _ in range(20):
            step_s = pool.profile.decode_s(max(1, round(streams)), streams * context) / max(0.05, left)
            streams = rate * asked.output_tokens * step_s
        if left > 1.0 - BUSY_RATIO and step_s <= slo.itl_s and streams * context <= BUSY_RATIO * pool.profile.kv_tokens:
            return float(replicas)
    return float(pool.max_replicas)
