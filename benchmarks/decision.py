"""Times one placement decision: the whole of `Scheduler.place([ask], now)`, booking included. Hashing and index excluded.

`python benchmarks/decision.py` prints p50s beside the figures to reach and writes benchmarks/results/decision.json. Every
endpoint has 16 live streams; a quarter of the endpoints hold a part of the prompt. Sizes take turns within a run; given
are the median of the runs and their spread.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace

import msgspec
import numpy as np
from penstock_core.endpoint import Endpoint, Role, WorkerRecord
from penstock_core.profile import DEFAULT_PROFILE
from penstock_core.slo import Slo
from penstock_router import kernel
from penstock_router.scheduling import Ask, Booking, Scheduler

TO_REACH_US = {8: 10.0, 64: 20.0, 256: 50.0, 1_024: 150.0}
PROMPTS = (1_024, 8_192)
STREAMS = 16
SLO = Slo(ttft_s=2.0, itl_s=0.025)
CHUNK_TOKENS = 64.0
START_S = 10.0
CASES = {
    "target-misses": ("target-misses", 0.0),
    "  all stalled 1 s": ("target-misses", 1.0),
    "prefix-affinity": ("prefix-affinity", 0.0),
}
"""Shown name → policy, and how long the streams have been silent."""


def endpoint(number: int) -> Endpoint:
    record = WorkerRecord(
        id=f"worker-{number}",
        url=f"http://127.0.0.1:{10_000 + number}",
        role=Role.BOTH,
        pool="workers",
        model="m",
        epoch=number + 1,
        profile=DEFAULT_PROFILE,
        kv_total_tokens=DEFAULT_PROFILE.kv_tokens,
        block_tokens=64,
        max_model_tokens=131_072,
    )
    return Endpoint(record, slot=number)


def loaded(policy: str, endpoints: int, silent_s: float = 0.0) -> Scheduler:
    """A scheduler whose every endpoint decodes STREAMS streams of 200..3,000 prompt and 1..300 output tokens at START_S.

    A stream was placed at an idle endpoint and had its first token when foretold; then it has run at 9 ms a token and has lost
    up to 0.4 s to the prefills of others. With `silent_s` none of them has had a token for that long: the worst case, in
    which every stream has to be looked at.
    """
    rng = Random(7)
    scheduler = Scheduler(policy, rng=rng)
    scheduler.warm_up()
    everyone = [endpoint(number) for number in range(endpoints)]
    for only in everyone:  # one alive at a time gets its streams; all are alive at the end
        scheduler.set_endpoints(
            [only if one is only else msgspec.structs.replace(one, draining=True) for one in everyone[: only.slot + 1]], 0.0
        )
        tokens_of = sorted((rng.randrange(1, 300) for _ in range(STREAMS)), reverse=True)
        for tokens in tokens_of:
            last_s = START_S - rng.uniform(0.0, 0.009) - silent_s
            placed_s = last_s - 0.009 * (tokens - 1) - rng.uniform(0.2, 0.4)
            ask = Ask(prompt_tokens=rng.randrange(200, 3_000), slo=SLO)
            booking = placed(scheduler, ask, placed_s)
            booking.first_token(foretold_s(booking, placed_s))
            for _ in range(tokens - 1):
                booking.token(last_s)
    scheduler.set_endpoints(everyone, 0.0)
    return scheduler


def placed(scheduler: Scheduler, ask: Ask, now: float) -> Booking:
    booking = scheduler.place_one(ask, now)
    assert booking is not None
    return booking


def foretold_s(booking: Booking, placed_s: float) -> float:
    """When its first token is due: a router learns from what it sees, and one whose every prediction fails weighs by other branches."""
    return placed_s + (booking.placement.ttft_s or 0.0)


def asks_of(prompt_tokens: int, endpoints: int, count: int) -> list[Ask]:
    rng = np.random.default_rng(11)
    asks = []
    for _ in range(count):
        slots = np.sort(rng.choice(endpoints, max(1, endpoints // 4), replace=False)).astype(np.uint16)
        chunks = rng.integers(1, int(prompt_tokens / CHUNK_TOKENS), len(slots)).astype(np.int32)
        hits = SimpleNamespace(slots=slots, chunks=chunks)
        asks.append(Ask(prompt_tokens=prompt_tokens, tokens_per_chunk=CHUNK_TOKENS, hits=hits, slo=SLO))
    return asks


def decision_us(scheduler: Scheduler, asks: list[Ask], clock: list[float]) -> dict[str, float]:
    """p50 microseconds of placing, first token, a token, and the end."""
    times: dict[str, list[int]] = {"place": [], "first_token": [], "done": []}
    tokens = 0
    for ask in asks:
        clock[0] += 1e-6  # the streams stand still meanwhile
        now = clock[0]
        t0 = time.perf_counter_ns()
        made = scheduler.place([ask], now)
        t1 = time.perf_counter_ns()
        booking = made[0]
        assert booking is not None
        first_s = foretold_s(booking, now)
        t2 = time.perf_counter_ns()
        booking.first_token(first_s)
        t3 = time.perf_counter_ns()
        for _ in range(20):
            booking.token(first_s)
        t4 = time.perf_counter_ns()
        booking.done(first_s)
        t5 = time.perf_counter_ns()
        times["place"].append(t1 - t0)
        times["first_token"].append(t3 - t2)
        times["done"].append(t5 - t4)
        tokens += t4 - t3
    figures = {name: statistics.median(values) / 1e3 for name, values in times.items()}
    figures["token"] = tokens / len(asks) / 20 / 1e3
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--decisions", type=int, default=400, help="per run, size and prompt length")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decision.json")
    options = parser.parse_args()
    cases = [(name, size, prompt) for name in CASES for size in TO_REACH_US for prompt in PROMPTS]
    schedulers = {(name, size): loaded(policy, size, silent_s) for name, (policy, silent_s) in CASES.items() for size in TO_REACH_US}
    asks = {(size, prompt): asks_of(prompt, size, options.decisions) for size in TO_REACH_US for prompt in PROMPTS}
    clocks = {case: [START_S] for case in schedulers}
    runs: dict[tuple[str, int, int], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(options.runs):
        for policy, size, prompt in cases:
            figures = decision_us(schedulers[policy, size], asks[size, prompt], clocks[policy, size])
            runs[policy, size, prompt].append(figures)
    print(f"kernel {'compiled' if kernel.COMPILED else 'plain Python'}; p50 µs, median of {options.runs} runs (least..most)")
    print(f"{'policy':20}{'endpoints':>10}{'prompt':>8}{'decision µs':>24}{'to reach':>10}{'first':>8}{'token':>8}{'done':>8}")
    results = []
    for (policy, size, prompt), all_runs in runs.items():
        place = [figures["place"] for figures in all_runs]
        middle = {name: statistics.median(figures[name] for figures in all_runs) for name in all_runs[0]}
        shown = f"{middle['place']:.1f} ({min(place):.1f}..{max(place):.1f})"
        print(
            f"{policy:20}{size:>10}{prompt:>8}{shown:>24}{TO_REACH_US[size]:>10.0f}"
            f"{middle['first_token']:>8.2f}{middle['token']:>8.3f}{middle['done']:>8.2f}"
        )
        results.append(
            {
                "policy": policy.strip(),
                "endpoints": size,
                "prompt_tokens": prompt,
                "to_reach_us": TO_REACH_US[size],
                "runs_us": place,
                **middle,
            }
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"compiled": kernel.COMPILED, "python": platform.python_version(), "streams": STREAMS, "results": results}, indent=1)
    )


if __name__ == "__main__":
    main()
