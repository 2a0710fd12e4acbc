"""The fixed-size frontier of a scene: what each fixed size reaches and costs, and what lies on the line between its best points.

`scaling` compares a scaler with it at equal goodput and at equal cost. Sizes that another one beats in both are not on it.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.scaling_runs import Bench, Measured, Run, Size
from benchmarks.scaling_scenes import SCENES

PAIRS = {
    "stationary": tuple(Size(prefill=p, decode=d) for p in range(3, 8) for d in range(1, 5)),
    "ramp": tuple(Size(prefill=p, decode=d) for p in range(3, 9) for d in range(1, 5)),
    "step": tuple(Size(prefill=p, decode=d) for p in range(3, 9) for d in range(1, 5)),
}


class Frontier:
    """Points of (replica-hours, goodput ratio), both rising."""

    def __init__(self, found: Sequence[Measured]) -> None:
        self.found = sorted(found, key=lambda one: one.hours)
        best: list[Measured] = []
        for one in self.found:
            if not best or one.goodput_ratio > best[-1].goodput_ratio:
                best.append(one)
        self.best = best
        self._hours = np.array([one.hours for one in best])
        self._goodput = np.array([one.goodput_ratio for one in best])

    def goodput_at(self, hours: float) -> float | None:
        """What the line reaches for that cost; None below its first point; the last point's beyond it."""
        return None if hours < self._hours[0] else float(np.interp(hours, self._hours, self._goodput))

    def hours_at(self, goodput: float) -> float | None:
        """What that goodput costs on the line; None above what any size reaches; the first point's below it."""
        return None if goodput > self._goodput[-1] else float(np.interp(goodput, self._goodput, self._hours))


def fixed_runs(scene: str, seed: int, divided: bool) -> list[Run]:
    sizes = PAIRS[scene] if divided else tuple(Size(both=n) for n in SCENES[scene].sizes)
    return [Run(scene=scene, seed=seed, size=size) for size in sizes]


def frontier(bench: Bench, scene: str, seed: int = 0, divided: bool = False) -> Frontier:
    """Replays every fixed size of the scene, or remembers it."""
    word = "fixed (P, D) pairs" if divided else "fixed sizes"
    return Frontier(bench.measure(f"{scene}, seed {seed}: {word}", fixed_runs(scene, seed, divided)))
