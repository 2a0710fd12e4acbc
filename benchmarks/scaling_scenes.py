"""Traffic that the autoscaler is judged on: the conversation trace as it is, as a ramp and as a step, and made-up staircases and stories.

The `scaling` benchmarks replay these. A Scene says what is asked, of which engines, under which targets; a seed gives other requests
of the same kind. Seeds below JUDGED are for tuning, those from it on are for judging and are never tuned on. Nothing here replays anything.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.profile import DEFAULT_PROFILE, EngineProfile, profile_named
from penstock_core.slo import Slo
from penstock_simulator.traces import read_trace
from penstock_simulator.workload import Asked, Workload, assemble

TRACES_VARIABLE = "PENSTOCK_TRACES"
"""Names the folder with mooncake_conversation.jsonl[.zst]; the default is `traces` beside the checkout's files."""
JUDGED = 1_000
"""The first seed for judging."""
STEP_PEAK, RAMP_PEAK = 3.0, 3.0
STAIRCASE_S = 1_800.0


@dataclass(frozen=True)
class Scene:
    """One kind of traffic; `cuts` are the moments (s) at which a schedule for it may change its sizes."""

    name: str
    make: Callable[[int], Workload]
    cuts: Callable[[int], tuple[float, ...]]
    profile: EngineProfile
    slo: Slo
    sizes: tuple[int, ...]
    """Undivided sizes worth looking at; the largest one meets the targets."""
    first: int
    """Size to begin with where no schedule says another one."""
    turn_order: bool = True
    cached: bool = False
    """Whether prompts share blocks, so that a part of the traffic alone would find other caches than it has within the whole."""


def traces_folder() -> Path:
    """Where the traces are."""
    return Path(os.environ.get(TRACES_VARIABLE, "traces"))


@lru_cache(maxsize=1)
def conversation() -> Workload:
    """The Mooncake conversation hour. Raises FileNotFoundError that names the variable."""
    folder = traces_folder()
    for name in ("mooncake_conversation.jsonl.zst", "mooncake_conversation.jsonl"):
        if (folder / name).is_file():
            return read_trace(folder / name)
    raise FileNotFoundError(
        f"{folder}/mooncake_conversation.jsonl[.zst] is not there: give --traces FOLDER or set {TRACES_VARIABLE} "
        "(the trace is Mooncake's, Apache-2.0, github.com/kvcache-ai/Mooncake, FAST'25 release)"
    )


def _warped(times_s: Sequence[float], speeds: Sequence[float], name: str) -> Workload:
    """The conversation at a speed that goes through `speeds` at `times_s`, evenly between them."""
    trace = conversation()
    at_s = np.linspace(0.0, times_s[-1], 100_001)
    speed = np.interp(at_s, times_s, speeds)
    told_s = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2.0 * np.diff(at_s))])
    return msgspec.structs.replace(trace, name=name, arrival_s=np.interp(trace.arrival_s, told_s, at_s))


def trace_s() -> float:
    """Seconds from the first to the last request of the trace."""
    return float(conversation().arrival_s[-1])


def stationary(_seed: int) -> Workload:
    return msgspec.structs.replace(conversation().at_speed(2.0), name="conversation ×2")


def ramp(_seed: int) -> Workload:
    """×1, then evenly up to ×3 and down again in the middle 40 % of the time, then ×1."""
    span_s = trace_s() / (1.0 + 0.2 * (RAMP_PEAK - 1.0))
    return _warped([0.0, 0.3 * span_s, 0.5 * span_s, 0.7 * span_s, span_s], [1.0, 1.0, RAMP_PEAK, 1.0, 1.0], "conversation ×1→×3→×1")


def step_changes() -> tuple[float, ...]:
    """When the step's rate becomes another one."""
    span_s = trace_s()
    return 0.0, 0.3 * span_s, 0.3 * span_s + 0.4 * span_s / STEP_PEAK


def step(_seed: int) -> Workload:
    """The middle 40 % of the trace at ×3, what is before and after it at ×1."""
    trace = conversation()
    told_s = trace_s() * np.array([0.0, 0.3, 0.7, 1.0])
    at_s = [*step_changes(), step_changes()[-1] + 0.3 * trace_s()]
    return msgspec.structs.replace(trace, name="conversation ×1|×3|×1", arrival_s=np.interp(trace.arrival_s, told_s, at_s))


def even_cuts(make: Callable[[int], Workload], every_s: float) -> Callable[[int], tuple[float, ...]]:
    def cuts(seed: int) -> tuple[float, ...]:
        return tuple(np.arange(0.0, float(make(seed).arrival_s[-1]), every_s).tolist())

    return cuts


# -- made up --------------------------------------------------------------------------------------------------------


def poisson(stages: Sequence[tuple[float, float]], seed: int, prompt_tokens: int = 4_000, output_tokens: int = 1_000) -> list[Asked]:
    """Arrivals of successive stages of (seconds, requests a second)."""
    rng = np.random.default_rng(seed)
    asked: list[Asked] = []
    start_s = 0.0
    for length_s, rate in stages:
        times = np.sort(rng.uniform(0.0, length_s, rng.poisson(rate * length_s)))
        asked += [Asked(start_s + float(at), prompt_tokens, output_tokens, ()) for at in times]
        start_s += length_s
    return asked


@lru_cache(maxsize=64)
def stairs(seed: int) -> tuple[tuple[float, float], ...]:
    """Stages of 3 to 8 minutes and 1 to 10 requests a second, STAIRCASE_S long in all."""
    rng = np.random.default_rng(7_000_000 + seed)
    stages: list[tuple[float, float]] = []
    left_s = STAIRCASE_S
    while left_s > 0.0:
        length_s = min(float(rng.uniform(180.0, 480.0)), left_s)
        length_s = left_s if left_s - length_s < 180.0 else length_s
        stages.append((length_s, float(rng.uniform(1.0, 10.0))))
        left_s -= length_s
    return tuple(stages)


def staircase(seed: int) -> Workload:
    return assemble(f"staircase {seed}", poisson(stairs(seed), seed), 0)


def stair_cuts(seed: int) -> tuple[float, ...]:
    return tuple(np.cumsum([0.0, *(length_s for length_s, _ in stairs(seed)[:-1])]).tolist())


BURST = ((900.0, 1.0), (60.0, 10.0), (1_440.0, 1.0))


def burst(seed: int) -> Workload:
    """Ten times the load for one minute."""
    return assemble("burst", poisson(BURST, seed), 0)


def wave(seed: int) -> Workload:
    """A day's wave in four hours: between 1 and 6 requests a second."""
    stages = [(60.0, 3.5 - 2.5 * float(np.cos(2.0 * np.pi * minute / 240.0))) for minute in range(240)]
    return assemble("wave", poisson(stages, seed, 4_000, 300), 0)


SHIFT_S = 1_200.0


def shift(seed: int) -> Workload:
    """Long prompts with short answers, from SHIFT_S on short prompts with long answers."""
    before = poisson([(SHIFT_S, 3.0)], seed, 8_000, 150)
    after = poisson([(1_500.0, 3.0)], seed + 500_000, 1_000, 1_000)
    return assemble("shift", [*before, *(msgspec.structs.replace(one, arrival_s=one.arrival_s + SHIFT_S) for one in after)], 0)


def arrivals_by(workload: Workload, cuts: Sequence[float]) -> NDArray[np.int64]:
    """Which cut each request arrives in, shape (R,)."""
    found: NDArray[np.int64] = np.searchsorted(np.asarray(cuts), workload.arrival_s, side="right") - 1
    return found


QWEN = profile_named("qwen3-32b-h100x2")
QWEN_SLO = Slo(3.0, 0.1)
TRACE_SLO = Slo(2.0, 0.025)
_WIDE = tuple(range(1, 15))


def _trace_scene(name: str, make: Callable[[int], Workload], sizes: tuple[int, ...], first: int) -> Scene:
    cuts = even_cuts(make, 120.0)
    return Scene(name, make, cuts, DEFAULT_PROFILE, TRACE_SLO, sizes, first, turn_order=False, cached=True)


SCENES = {
    scene.name: scene
    for scene in (
        _trace_scene("stationary", stationary, tuple(range(4, 11)), 6),
        _trace_scene("ramp", ramp, tuple(range(3, 11)), 4),
        _trace_scene("step", step, tuple(range(3, 11)), 4),
        Scene("staircase", staircase, stair_cuts, QWEN, QWEN_SLO, _WIDE, 5),
        Scene("burst", burst, lambda _seed: (0.0, 900.0, 960.0), QWEN, QWEN_SLO, _WIDE, 1),
        Scene("wave", wave, lambda _seed: tuple(np.arange(0.0, 14_400.0, 600.0).tolist()), QWEN, QWEN_SLO, _WIDE, 1),
        Scene("shift", shift, lambda _seed: (0.0, SHIFT_S), QWEN, QWEN_SLO, _WIDE, 4),
    )
}
