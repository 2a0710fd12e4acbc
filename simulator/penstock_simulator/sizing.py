"""Sizes that replays find: the best prefill : decode split of each size, and a mix of accelerator types that really meets the targets.

`penstock plan` calls it. Splits are searched as DistServe does it (Zhong et al., 2024): every size is divided where simulated attainment
is highest. A mix comes from the integer programme of the autoscaler's `mix`, which knows no queues and no caches; here it is replayed, and
the load it is made for is corrected until the cheapest mix that reaches the goal is found.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_autoscaler.mix import NoMix, Offer, TypeMix, buckets, cheapest, loads
from penstock_core.errors import PenstockError
from penstock_core.profile import EngineProfile
from penstock_core.slo import Slo

from penstock_simulator.cluster import replay
from penstock_simulator.report import summarise
from penstock_simulator.setup import Setup, WorkerSpec, same_workers
from penstock_simulator.workload import Workload

_STEP = 1.12
_MOST_STEPS = 12
_MOST_WORKERS = 1_024

Say = Callable[[str], None]


class GoalMissed(PenstockError):
    """No mix that was tried reaches the goal; the message says how near the last one came."""


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """A size, divided."""

    prefill: int
    decode: int
    attainment_ratio: float

    @property
    def size(self) -> int:
        return self.prefill + self.decode


class CheckedMix(msgspec.Struct, frozen=True, kw_only=True):
    """A mix, and how it did in the replay."""

    mix: TypeMix
    attainment_ratio: float
    load_factor: float
    """What the workload's rate was multiplied by for the programme."""
    replays: int


def busiest_rate(workload: Workload, window_s: float) -> float:
    """Requests a second in the busiest `window_s` seconds; the mean where the workload is shorter."""
    arrival_s = np.sort(workload.arrival_s)
    length_s = float(arrival_s[-1] - arrival_s[0]) if len(arrival_s) else 0.0
    if length_s <= window_s:
        return len(arrival_s) / max(1.0, length_s)
    within = np.searchsorted(arrival_s, arrival_s + window_s, side="left") - np.arange(len(arrival_s))
    return float(within.max()) / window_s


def best_split(size: int, guess: int, attained: Callable[[int, int], float]) -> Split:
    """The number of prefill workers, 1..size − 1, with the highest attainment: a walk uphill from `guess`.

    `attained(prefill, decode)` has one summit: too few of either role cost more the fewer they are. Ties go to where the walk began.
    """
    if size < 2:
        raise ValueError(f"size is {size}; allowed: 2 or more, one of each role")
    at = max(1, min(size - 1, guess))
    known = {at: attained(at, size - at)}
    for step in (1, -1):
        while 1 <= at + step < size:
            if at + step not in known:
                known[at + step] = attained(at + step, size - at - step)
            if known[at + step] <= known[at]:
                break
            at += step
    return Split(prefill=at, decode=size - at, attainment_ratio=known[at])


def best_splits(workload: Workload, profile: EngineProfile, slo: Slo, goal_ratio: float, most: int, say: Say) -> list[Split]:
    """Sizes 2, 3, … up to the first one whose best split reaches the goal, or `most`; a size's walk begins at the last one's split."""

    def attained(prefill: int, decode: int) -> float:
        say(f"replaying {prefill}P{decode}D")
        setup = Setup(workers=same_workers(prefill=prefill, decode=decode, profile=profile), slo=slo)
        return summarise(replay(workload, setup)).goodput_ratio

    found: list[Split] = []
    for size in range(2, most + 1):
        guess = round(size * found[-1].prefill / found[-1].size) if found else 1
        found.append(best_split(size, guess, attained))
        if found[-1].attainment_ratio >= goal_ratio:
            break
    return found


def cheapest_checked(workload: Workload, offers: Sequence[Offer], slo: Slo, goal_ratio: float, rate: float, say: Say) -> CheckedMix:
    """The cheapest mix of whole replicas that reaches the goal in a replay of the workload.

    The programme is solved for `rate`, and for more or less of it as the replay says. Raises NoMix, GoalMissed, SolverMissing.
    """
    asked = buckets(workload.prompt_tokens, workload.output_tokens, rate)
    full = _without_hopeless(loads(asked, offers, slo), np.array([one.rate for one in asked]), goal_ratio)
    tried: dict[tuple[int, ...], float] = {}

    def checked(factor: float) -> CheckedMix:
        mix = cheapest(full * factor, offers)
        counts = tuple(mix.replicas[offer.name] for offer in offers)
        if counts not in tried:
            say(f"replaying {words(mix)}, {mix.price:g} an hour")
            setup = Setup(workers=fleet(mix, offers), slo=slo)
            tried[counts] = summarise(replay(workload, setup)).goodput_ratio
        return CheckedMix(mix=mix, attainment_ratio=tried[counts], load_factor=factor, replays=len(tried))

    factor, best = 1.0, checked(1.0)
    grows = best.attainment_ratio < goal_ratio
    for _ in range(_MOST_STEPS):
        factor = factor * _STEP if grows else factor / _STEP
        one = checked(factor)
        met = one.attainment_ratio >= goal_ratio
        if met or (grows and one.attainment_ratio >= best.attainment_ratio):
            best = one
        if met == grows:
            break
    if best.attainment_ratio < goal_ratio:
        raise GoalMissed(
            f"the dearest mix tried ({words(best.mix)}) reaches {best.attainment_ratio:.1%} of a goal of {goal_ratio:.1%}; "
            "loosen --goal or the targets, or offer a faster type"
        )
    return msgspec.structs.replace(best, replays=len(tried))


def _without_hopeless(full: NDArray[np.float64], rates: NDArray[np.float64], goal_ratio: float) -> NDArray[np.float64]:
    """Sizes that meet the targets nowhere are left out, as long as the goal allows to miss them."""
    placed = np.isfinite(full).any(axis=1)
    lost = float(rates[~placed].sum() / max(1e-12, rates.sum()))
    if lost > 1.0 - goal_ratio:
        raise NoMix(f"{lost:.1%} of the requests meet the targets on no offered type, even alone; allowed: {1.0 - goal_ratio:.1%} (--goal)")
    kept: NDArray[np.float64] = full[placed]
    return kept


def fleet(mix: TypeMix, offers: Sequence[Offer]) -> tuple[WorkerSpec, ...]:
    """Workers of every type, all of which do both. Raises ValueError above _MOST_WORKERS."""
    specs = tuple(WorkerSpec(id=f"{offer.name}-{i}", profile=offer.profile) for offer in offers for i in range(mix.replicas[offer.name]))
    if not 1 <= len(specs) <= _MOST_WORKERS:
        raise ValueError(f"the mix has {len(specs)} replicas; allowed: 1..{_MOST_WORKERS}")
    return specs


def words(mix: TypeMix) -> str:
    return " + ".join(f"{count} × {name}" for name, count in mix.replicas.items() if count) or "nothing"
