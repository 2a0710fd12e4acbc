"""`penstock simulate --autoscale`: the autoscaler put into the replays that the other options ask for.

`simulate` calls it. One loop a replay, with the production brain; nothing is decided here.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec
from penstock_autoscaler.observation import Target
from penstock_core.profile import EngineProfile
from penstock_simulator.autoscaled import Autoscaled, Tick
from penstock_simulator.dry_run import Asked, autoscaled, spare_workers
from penstock_simulator.setup import Setup, WorkerSpec
from penstock_simulator.workload import Workload

from penstock_cli.explain_scaling import pace

Wanted = list[tuple[Workload, Setup]]


def with_autoscaler(wanted: Wanted, goal: float, bounds: tuple[int, int], start_s: float) -> tuple[Wanted, list[Autoscaled]]:
    """The same replays, each with a loop of its own. Raises ValueError for fleets of several kinds, and for sizes out of bounds."""
    if not 0.0 < goal < 1.0:
        raise ValueError(f"goal is {goal!r}; allowed: more than 0 and less than 1")
    if bounds[0] > bounds[1]:
        raise ValueError(f"min is {bounds[0]}; allowed: 1..{bounds[1]}, the value of --max")
    made: Wanted = []
    loops: list[Autoscaled] = []
    for workload, setup in wanted:
        profile = _profile(setup.workers)
        asked = Asked(
            profile=profile,
            target=Target(slo=setup.slo, attainment_ratio=goal),
            first=Counter(spec.role for spec in setup.workers),
            least=bounds[0],
            most=bounds[1],
            start_s=profile.start_s if start_s < 0.0 else start_s,
            seed=setup.seed,
        )
        loop = autoscaled(asked, setup.policy, setup.turn_order)
        loops.append(loop)
        made.append((workload, _controlled(setup, loop, spare_workers(asked))))
    return made, loops


def fitted_lines(ticks: Sequence[Tick]) -> list[str]:
    """Since when each pool was sized by what routers measured of its engines, and what that came to."""
    first: dict[str, float] = {}
    for tick in ticks:
        for pool in tick.fits:
            first.setdefault(pool, tick.decision.at_s)
    last = ticks[-1].fits if ticks else {}
    return [f"From {at_s:.0f} s on {pool} was sized by what routers measured: {pace(last.get(pool))}." for pool, at_s in first.items()]


def _controlled(setup: Setup, loop: Autoscaled, spare: int) -> Setup:
    return msgspec.structs.replace(setup, make_controller=lambda: loop, spare_workers=spare)


def _profile(workers: Sequence[WorkerSpec]) -> EngineProfile:
    """What workers say of themselves, which the autoscaler is told. Started ones are like the first."""
    kinds = {(spec.profile.name, (spec.declared or spec.profile).name) for spec in workers}
    if len(kinds) > 1:
        raise ValueError(f"--autoscale with {len(kinds)} kinds of workers; allowed: one, so that it is known what is started")
    return workers[0].declared or workers[0].profile
