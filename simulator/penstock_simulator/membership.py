"""Which workers the router knows: their start, drain, death and departure, told to the routers as endpoints.

Owned by the cluster. What happens to the requests of a worker that dies is the cluster's business.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from penstock_core.endpoint import Endpoint, WorkerRecord

from penstock_simulator.clock import Clock
from penstock_simulator.routers import Routers
from penstock_simulator.setup import WorkerSpec
from penstock_simulator.workload import BLOCK_TOKENS


class Membership:
    """State: `live` workers (draining ones among them), and when each left."""

    def __init__(self, specs: Sequence[WorkerSpec], routers: Routers, clock: Clock, die: Callable[[int, float], None]) -> None:
        self.number = {spec.id: w for w, spec in enumerate(specs)}
        self.live: set[int] = {w for w, spec in enumerate(specs) if spec.ready_s <= 0.0}
        self.draining: set[int] = set()
        self.left_s = np.full(len(specs), np.nan)
        """Shape (W,); NaN: still there."""
        self._routers = routers
        self._endpoints = [_endpoint(w, spec) for w, spec in enumerate(specs)]
        if len(self.number) < len(specs):
            raise ValueError(f"worker ids are {[spec.id for spec in specs]}; allowed: each once")
        for w, spec in enumerate(specs):
            if spec.ready_s > 0.0:
                clock.at(spec.ready_s, lambda now, w=w: self._ready(w, now))  # type: ignore[misc]
            if spec.drains_s is not None:
                clock.at(spec.drains_s, lambda now, w=w: self._drain(w, now))  # type: ignore[misc]
            if spec.dies_s is not None:
                clock.at(spec.dies_s, lambda now, w=w: die(w, now))  # type: ignore[misc]
        self._tell(0.0)

    def leave(self, w: int, now: float) -> None:
        """Worker w is gone."""
        self.live.discard(w)
        self.left_s[w] = now
        self._tell(now)

    def _ready(self, w: int, now: float) -> None:
        if np.isnan(self.left_s[w]):
            self.live.add(w)
            self._tell(now)

    def _drain(self, w: int, now: float) -> None:
        self.draining.add(w)
        self._tell(now)

    def _tell(self, now: float) -> None:
        known = sorted(self.live)
        self._routers.set_endpoints([msgspec.structs.replace(self._endpoints[w], draining=w in self.draining) for w in known], now)


def _endpoint(w: int, spec: WorkerSpec) -> Endpoint:
    declared = spec.declared or spec.profile
    record = WorkerRecord(
        id=spec.id,
        url=f"http://{spec.id}",
        role=spec.role,
        pool=spec.role.value,
        model="simulated",
        epoch=w,
        profile=declared,
        kv_total_tokens=declared.kv_tokens,
        block_tokens=BLOCK_TOKENS,
        max_model_tokens=declared.kv_tokens,
    )
    return Endpoint(record, slot=w)
