"""The engine's own metrics in Prometheus text form, under vLLM's names (protocol.md §3).

The engine counts here as it goes; a scrape renders. Counting is a few additions, because every word of every stream passes.
"""

from bisect import bisect_left
from collections.abc import Iterator

import msgspec

_TTFT_BOUNDS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_GAP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)


class Histogram:
    """Counts of seconds by upper bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum_s += seconds

    def lines(self, name: str, label: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{label},le="{bound}"}} {total}'
        yield f"{name}_sum{{{label}}} {self._sum_s}"
        yield f"{name}_count{{{label}}} {total}"


class Gauges(msgspec.Struct, frozen=True):
    """What is read at the time of a scrape."""

    running: int
    waiting: int
    kv_usage_ratio: float
    queried_tokens: int
    hit_tokens: int
    preemptions: int
    blocks: int
    block_tokens: int
    unclaimed_tokens: int
    claims_expired: int


class SimMetrics:
    """Counters of one engine."""

    def __init__(self, model: str) -> None:
        escaped = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        self._label = f'model_name="{escaped}"'
        self.ttft = Histogram(_TTFT_BOUNDS_S)
        self.gap = Histogram(_GAP_BOUNDS_S)
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0}
        self.pulled_bytes = 0
        """Modelled KV bytes that came from prefill workers, and below those that decode workers took from here."""
        self.served_bytes = 0
        self.pulls = 0
        self.pull_seconds = 0.0
        self.pulls_failed = 0

    def text(self, now: Gauges) -> str:
        label = self._label
        lines = [
            *_sample("vllm:num_requests_running", "gauge", label, now.running),
            *_sample("vllm:num_requests_waiting", "gauge", label, now.waiting),
            *_sample("vllm:kv_cache_usage_perc", "gauge", label, now.kv_usage_ratio),
            *_sample("vllm:prefix_cache_queries_total", "counter", label, now.queried_tokens),
            *_sample("vllm:prefix_cache_hits_total", "counter", label, now.hit_tokens),
            *_sample("vllm:num_preemptions_total", "counter", label, now.preemptions),
            *_sample("vllm:prompt_tokens_total", "counter", label, self.prompt_tokens),
            *_sample("vllm:generation_tokens_total", "counter", label, self.generated_tokens),
            *_sample(
                "vllm:cache_config_info",
                "gauge",
                f'{label},block_size="{now.block_tokens}",num_gpu_blocks="{now.blocks}",enable_prefix_caching="True"',
                1,
            ),
            "# TYPE vllm:request_success_total counter",
            *(f'vllm:request_success_total{{{label},finished_reason="{reason}"}} {n}' for reason, n in self.finished.items()),
            "# TYPE vllm:time_to_first_token_seconds histogram",
            *self.ttft.lines("vllm:time_to_first_token_seconds", label),
            "# TYPE vllm:inter_token_latency_seconds histogram",
            *self.gap.lines("vllm:inter_token_latency_seconds", label),
            *self._transfer(now),
        ]
        return "\n".join(lines) + "\n"

    def _transfer(self, now: Gauges) -> Iterator[str]:
        label = self._label
        yield "# TYPE vllm:nixl_bytes_transferred summary"
        yield f"vllm:nixl_bytes_transferred_sum{{{label}}} {self.pulled_bytes}"
        yield f"vllm:nixl_bytes_transferred_count{{{label}}} {self.pulls}"
        yield "# TYPE vllm:nixl_xfer_time_seconds summary"
        yield f"vllm:nixl_xfer_time_seconds_sum{{{label}}} {self.pull_seconds}"
        yield f"vllm:nixl_xfer_time_seconds_count{{{label}}} {self.pulls}"
        yield from _sample("vllm:nixl_num_failed_transfers_total", "counter", label, self.pulls_failed)
        yield from _sample("vllm:nixl_num_kv_expired_reqs_total", "counter", label, now.claims_expired)
        yield from _sample("sim:kv_bytes_served_total", "counter", label, self.served_bytes)
        yield from _sample("sim:kv_unclaimed_tokens", "gauge", label, now.unclaimed_tokens)


def _sample(name: str, kind: str, label: str, value: float) -> tuple[str, str]:
    # The exposition format names a counter's family with its suffix, as prometheus-client's text output does.
    return f"# TYPE {name} {kind}", f"{name}{{{label}}} {value}"
