"""Which workers the router knows: their start, drain, death and departure, told to the routers as endpoints.

Owned by the cluster. What happens to the requests of a worker that dies is the cluster's business.
"""

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.endpoint import Endpoint, Role, WorkerRecord

from penstock_simulator.clock import Clock
from penstock_simulator.routers import Routers
from penstock_simulator.setup import WorkerSpec
from penstock_simulator.workload import BLOCK_TOKENS


class Membership:
    """State: who each worker is at present, `live` ones (draining ones among them), and what each was paid for.

    A worker that has left is a free place, which `start` gives to a new one under another id.
    """

    def __init__(self, specs: Sequence[WorkerSpec], spare: int, routers: Routers, clock: Clock, die: Callable[[int, float], None]) -> None:
        """`spare`: further places for workers that are started later; these have the first worker's profile."""
        self.specs = [*specs, *(_place(i, specs[0]) for i in range(spare))]
        self.number = {spec.id: w for w, spec in enumerate(specs)}
        self.live: set[int] = {w for w, spec in enumerate(self.specs) if spec.ready_s <= 0.0}
        self.draining: set[int] = set()
        self.left_s = np.full(len(self.specs), np.nan)
        """Shape (W,); NaN: still there."""
        self.left_s[len(specs) :] = 0.0
        self._free = list(range(len(self.specs) - 1, len(specs) - 1, -1))
        self._paid_s = np.zeros(len(self.specs))  # of former lives
        self._epochs = list(range(len(self.specs)))
        self._next_role: dict[int, Role] = {}
        self._started = 0
        self._routers, self._clock, self._die = routers, clock, die
        if len(self.number) < len(specs):
            raise ValueError(f"worker ids are {[spec.id for spec in specs]}; allowed: each once")
        for w, spec in enumerate(specs):
            self._plan(w, spec)
        self._tell(0.0)

    def _plan(self, w: int, spec: WorkerSpec) -> None:
        def then(action: Callable[[int, float], None]) -> Callable[[float], None]:
            life = self._epochs[w]
            return lambda now: action(w, now) if self._epochs[w] == life else None

        if spec.ready_s > 0.0:
            self._clock.at(spec.ready_s, then(self._ready))
        if spec.drains_s is not None:
            self._clock.at(spec.drains_s, then(self.drain))
        if spec.dies_s is not None:
            self._clock.at(spec.dies_s, then(self._die))

    def known(self, worker_id: str) -> int:
        """Number of a worker that is paid for. Raises ValueError for others."""
        w = self.number.get(worker_id)
        if w is None:
            raise ValueError(f"worker is {worker_id!r}; allowed: {', '.join(sorted(self.number))}")
        return w

    def there(self) -> list[int]:
        """Numbers of all workers that are paid for."""
        return sorted(self.number.values())

    def start(self, role: Role, start_s: float, now: float) -> int:
        """A worker of that role is asked for, ready after `start_s`; gives its number. Raises ValueError with no place left."""
        if not self._free:
            raise ValueError(f"{len(self.number)} workers are there; allowed: at most {len(self.specs)} (spare_workers of the Setup)")
        w = self._free.pop()
        self._started += 1
        self._epochs[w] += len(self.specs)
        spec = WorkerSpec(
            id=f"{role.value}-new-{self._started}",
            role=role,
            profile=self.specs[w].profile,
            declared=self.specs[w].declared,
            asked_s=now,
            ready_s=now + start_s,
        )
        self.specs[w], self.left_s[w] = spec, np.nan
        self.number[spec.id] = w
        if start_s > 0.0:
            self._plan(w, spec)
        else:
            self._ready(w, now)
        return w

    def drain(self, w: int, now: float) -> None:
        """No new placements; the cluster tells when it is empty. One that is starting leaves at once."""
        self._next_role.pop(w, None)
        if w not in self.live:
            self.leave(w, now)
            return
        self.draining.add(w)
        self._tell(now)

    def switch(self, w: int, role: Role, now: float) -> None:
        """Another role, once it is empty; at once while it is starting."""
        if w not in self.live:
            self.specs[w] = msgspec.structs.replace(self.specs[w], role=role)
            return
        self.drain(w, now)
        self._next_role[w] = role

    def emptied(self, w: int, now: float) -> None:
        """A draining worker has nothing left: it leaves, or comes back in its next role."""
        role = self._next_role.pop(w, None)
        if role is None:
            self.leave(w, now)
            return
        self.draining.discard(w)
        self._epochs[w] += len(self.specs)
        self.specs[w] = msgspec.structs.replace(self.specs[w], role=role)
        self._tell(now)

    def leave(self, w: int, now: float) -> None:
        """Worker w is gone; a second time nothing happens."""
        if not np.isnan(self.left_s[w]):
            return
        self.live.discard(w)
        self.draining.discard(w)
        self._next_role.pop(w, None)
        self.left_s[w] = now
        self._paid_s[w] += max(0.0, now - self.specs[w].asked_s)
        del self.number[self.specs[w].id]
        self._free.append(w)
        self._tell(now)

    def paid_s(self, now: float) -> NDArray[np.float64]:
        """Seconds for which each was paid, shape (W,)."""
        paid = self._paid_s.copy()
        for w in self.there():
            paid[w] += max(0.0, now - self.specs[w].asked_s)
        return paid

    def _ready(self, w: int, now: float) -> None:
        if np.isnan(self.left_s[w]):
            self.live.add(w)
            self._tell(now)

    def _tell(self, now: float) -> None:
        endpoints = [_endpoint(w, self.specs[w], self._epochs[w], w in self.draining) for w in sorted(self.live)]
        self._routers.set_endpoints(endpoints, now)


def _place(number: int, like: WorkerSpec) -> WorkerSpec:
    """A place that nobody has taken yet."""
    return WorkerSpec(id=f"place-{number}", profile=like.profile, declared=like.declared, asked_s=math.inf, ready_s=math.inf)


def _endpoint(w: int, spec: WorkerSpec, epoch: int, draining: bool) -> Endpoint:
    declared = spec.declared or spec.profile
    record = WorkerRecord(
        id=spec.id,
        url=f"http://{spec.id}",
        role=spec.role,
        pool=spec.role.value,
        model="simulated",
        epoch=epoch,
        profile=declared,
        kv_total_tokens=declared.kv_tokens,
        block_tokens=BLOCK_TOKENS,
        max_model_tokens=declared.kv_tokens,
    )
    return Endpoint(record, slot=w, draining=draining)
