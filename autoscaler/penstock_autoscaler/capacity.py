"""How many requests of one size a second one replica can serve within the targets: arithmetic on its profile, no replay.

`mix` wants it for every size and accelerator type. Prompts and answers share the replica's passes; prompts queue for it. It knows neither
caches nor bursts, so whoever plans with it checks the result in the simulator.
"""

from penstock_core.profile import EngineProfile
from penstock_core.slo import Slo

_TAIL = 3.0
"""A prompt may find a queue of so many times the mean: about the 95th percentile of an exponential wait."""
_STEPS = 40


def most_rate(profile: EngineProfile, prompt_tokens: float, output_tokens: float, slo: Slo) -> float:
    """Requests a second; 0 where not even a lone one meets the targets or fits."""
    low, high = 0.0, 1.0
    if not meets(profile, prompt_tokens, output_tokens, slo, 1e-6):
        return 0.0
    while meets(profile, prompt_tokens, output_tokens, slo, high):
        low, high = high, 2.0 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if meets(profile, prompt_tokens, output_tokens, slo, middle) else (low, middle)
    return low


def meets(profile: EngineProfile, prompt_tokens: float, output_tokens: float, slo: Slo, rate: float) -> bool:
    """Whether one replica keeps both targets for `rate` requests of that size a second."""
    prefill_s = profile.prefill_s(round(prompt_tokens))
    busy = rate * prefill_s
    if busy >= 1.0 or prompt_tokens + output_tokens > profile.kv_tokens:
        return False
    streams = _streams(profile, prompt_tokens, output_tokens, slo, rate, 1.0 - busy)
    if streams is None:
        return False
    step_s = profile.decode_s(max(1, round(streams)), streams * (prompt_tokens + output_tokens / 2.0))
    passes = -(-prompt_tokens // profile.pass_tokens)
    wait_s = busy * prefill_s / (2.0 * (1.0 - busy))  # M/D/1
    return prefill_s + passes * step_s + _TAIL * wait_s <= slo.ttft_s


def _streams(profile: EngineProfile, prompt_tokens: float, output_tokens: float, slo: Slo, rate: float, left: float) -> float | None:
    """How many answers are open at once (Little's law); None where the ITL target, the KV or the engine does not allow them.

    `left`: share of the time that prompts leave to decode steps. The fixed point is reached from below, so it is the smallest one.
    """
    context = prompt_tokens + output_tokens / 2.0
    streams = 0.0
    for _ in range(200):
        step_s = profile.decode_s(max(1, round(streams)), max(1.0, streams) * context) / left
        if output_tokens > 1.0 and step_s > slo.itl_s:
            return None
        more = rate * (output_tokens - 1.0) * step_s
        if more > profile.max_streams or more * (prompt_tokens + output_tokens) > profile.kv_tokens:
            return None
        if abs(more - streams) < 1e-3:
            break
        streams = more
    return streams
