"""How long replicas took to start, and in which of their phases: remembered from every look at a fleet, so that nobody has to configure it.

`loop` keeps one Starts a model, shows it each fleet and gives pools the start-up time it measured. Actuators say of every ready replica
how its own start went (`start_of` puts that together); where none has started yet, the profile's start_s holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import msgspec
from penstock_core.endpoint import StartUp

from penstock_autoscaler.observation import Pool, Replica, Start

MOST_STARTS = 16
"""Of a pool: the latest."""
MOST_POOLS = 64
PHASES = tuple(name for name in Start.__struct_fields__ if name.endswith("_s"))


def start_of(name: str, total_s: float, *, schedule_s: float = 0.0, pull_s: float = 0.0, own: StartUp | None = None) -> Start:
    """A start of `total_s`, from being asked for to being ready. `own`: the worker's word; without it the engine gets what is left.

    Phases are told by several clocks: each is cut to what those before it have left over, so that they add up, and none is below 0.
    """
    told_s = (schedule_s, pull_s, *((own.process_s, own.engine_s) if own is not None else (0.0, total_s)))
    left_s = max(0.0, total_s)
    spent_s = []
    for one_s in told_s:
        spent_s.append(min(left_s, max(0.0, one_s)))
        left_s -= spent_s[-1]
    return Start(name=name, schedule_s=spent_s[0], pull_s=spent_s[1], process_s=spent_s[2], engine_s=spent_s[3], rest_s=left_s)


class Starts:
    """State: the latest starts of each pool, by their names."""

    def __init__(self, kept: Mapping[str, Sequence[Start]] | None = None) -> None:
        """`kept`: what another one remembered."""
        self._of: dict[str, dict[str, Start]] = {}
        for pool, starts in (kept or {}).items():
            for start in starts:
                self._note(pool, start)

    def see(self, replicas: Iterable[Replica]) -> None:
        """Note how each ready one started. The first word about a start stands: a replica may lose its readiness and find it again."""
        for one in replicas:
            if one.start is not None:
                self._note(one.pool, one.start)

    def kept(self) -> dict[str, list[Start]]:
        """For whoever goes on."""
        return {pool: list(starts.values()) for pool, starts in self._of.items()}

    def measured(self, pools: Sequence[Pool]) -> tuple[Pool, ...]:
        """The pools, those that have started replicas with the median of what these took."""
        return tuple(self._measured(pool) for pool in pools)

    def _measured(self, pool: Pool) -> Pool:
        starts = self._of.get(pool.name)
        if not starts:
            return pool
        phases = {name: median(getattr(one, name) for one in starts.values()) for name in PHASES}
        usual = Start(name=f"median of {len(starts)}", **phases)
        return msgspec.structs.replace(pool, start_s=median(one.total_s for one in starts.values()), start=usual)

    def _note(self, pool: str, start: Start) -> None:
        if pool not in self._of and len(self._of) >= MOST_POOLS:
            return
        starts = self._of.setdefault(pool, {})
        starts.setdefault(start.name, start)
        if len(starts) > MOST_STARTS:
            del starts[next(iter(starts))]
