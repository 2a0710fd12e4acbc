"""A simulated fleet: the production scheduler in front of simulated engines, replaying a workload in virtual time.

`replay` is what `penstock simulate`, the benchmarks and the autoscaler call. Between two events the engines run on in the
compiled loop; at an arrival, at the end of a prefill leg and at reports the scheduler is told and asked, as the router's
director would. One seed gives one result. It measures nothing: `report` reads what it leaves behind.
"""

import math
from collections.abc import Callable, Iterable
from random import Random

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.endpoint import Load, Role
from penstock_core.errors import Outcome
from penstock_router.booking import Booking
from penstock_router.books import Shared
from penstock_router.length_classes import class_of
from penstock_router.scheduling import Ask

from penstock_simulator import engine_model as engines
from penstock_simulator import fleet as fl
from penstock_simulator import kv_cache
from penstock_simulator.clock import Clock
from penstock_simulator.control import Control
from penstock_simulator.entry import Entry, Fate
from penstock_simulator.links import Links
from penstock_simulator.membership import Membership
from penstock_simulator.routers import Routers
from penstock_simulator.setup import Replay, Sample, Setup
from penstock_simulator.workload import BLOCK_TOKENS, Workload

ANNOUNCED_S = 4.0
"""How long routers count the prompt of a placement as held where it went, if no KV event says so."""


Progress = Callable[[int, int], None]
"""Told (requests ended, requests in all) now and then."""


def replay(workload: Workload, setup: Setup, progress: Progress | None = None) -> Replay:
    """Run the workload through the fleet to its end. Raises ValueError for what cannot be simulated."""
    return Cluster(workload, setup).run(progress)


class Cluster:
    """State: the engines' arrays, the routers with their beliefs, bookings of open requests, and the clock."""

    def __init__(self, workload: Workload, setup: Setup) -> None:
        self._workload, self._setup = workload, setup
        self._clock = Clock()
        self._routers = Routers(setup, workload.requests, self._clock, self._sync)
        controlled = setup.make_controller is not None
        self._members = Membership(setup.workers, setup.spare_workers if controlled else 0, self._routers, self._clock, self._die)
        self._specs = self._members.specs
        divided = controlled or any(spec.role is not Role.BOTH for spec in self._specs)
        self._fleet = fl.build(
            workload,
            [spec.profile for spec in self._specs],
            divided=divided,
            lagging=setup.index_lag_s > 0.0,
            given_tokens=setup.given_hit_tokens,
        )
        followed = bool((workload.follows >= 0).any())
        self._stops = divided or followed
        for w, spec in enumerate(self._specs):
            self._fleet.workers[w, fl.DECIDES] = followed or controlled or spec.role is not Role.DECODE
        self._order = Random(setup.seed + 1)  # noqa: S311  in which order answers of one pass are heard
        self._entry = None
        if setup.admission is not None:
            self._entry = Entry(self._routers.schedulers[0], setup.admission, setup.claims, workload.output_tokens)
        self._links = Links([spec.profile.transfer_bytes_per_s for spec in self._specs])
        requests = workload.requests
        self._arrival_s = np.where(workload.follows < 0, workload.arrival_s, np.nan)
        self._outcomes: list[Outcome | None] = [None] * requests
        self._open = requests
        self._bookings: dict[int, Booking | Shared] = {}
        self._told: dict[int, int] = {}  # tokens of a streaming request that its booking knows of
        self._followers: dict[int, list[int]] = {}
        for i in np.flatnonzero(workload.follows >= 0).tolist():
            self._followers.setdefault(int(workload.follows[i]), []).append(i)
        self._late: list[int] = []  # followers that arrive in this instant
        self._loads = np.zeros((len(self._specs), 4), np.int64)
        self._hits = np.zeros(len(self._specs), np.int64)
        self._most_tokens = [spec.profile.kv_tokens // BLOCK_TOKENS * BLOCK_TOKENS for spec in self._specs]
        self._samples: list[Sample] = []
        self._control: Control | None = None
        if setup.make_controller is not None:
            made = setup.make_controller()
            told = (self._arrival_s, self._outcomes, self._routers.fits)
            self._control = Control(made, workload, self._fleet, self._members, self._clock, *told)
        self._cells: memoryview[int] = self._fleet.legs.reshape(-1).data
        self._leg_s: memoryview[float] = self._fleet.times.reshape(-1).data  # type: ignore[assignment]

    def run(self, progress: Progress | None = None) -> Replay:
        """All requests to their end."""
        arrivals = np.flatnonzero(self._workload.follows < 0)
        order = arrivals[np.argsort(self._workload.arrival_s[arrivals], kind="stable")].tolist()
        times: list[float] = [*self._workload.arrival_s[order].tolist(), math.inf]
        self._clock.at(0.0, self._report)
        i = 0
        while self._open:
            target = min(times[i], self._clock.next_s, self._links.next_end_s)
            if self._entry is not None:
                target = max(self._clock.now, min(target, self._entry.next_s))
            logged, reached = engines.run_passes(self._fleet, target, self._stops)
            self._hear(logged)
            if reached == target:
                if target == math.inf:
                    raise AssertionError(f"{self._open} requests are open, and nothing is due")
                self._clock.advance(target)
                self._transferred(target)
                end = i
                while times[end] == target:
                    end += 1
                self._arrive(order[i:end] + self._late, target)
                self._late = []
                i = end
                if self._entry is not None and self._entry.next_s <= target:
                    self._sync()
                    self._begin(self._entry.settle(target), target)
                if progress is not None:
                    progress(self._workload.requests - self._open, self._workload.requests)
            engines.start_idle(self._fleet, reached)
        return self._result()

    # -- requests -------------------------------------------------------------------------------------------------

    def _arrive(self, requests: list[int], now: float) -> None:
        if not requests:
            return
        self._arrival_s[requests] = now
        if self._control is not None:
            self._control.arrived += requests
        self._sync()
        if self._setup.index_lag_s > 0.0:
            kv_cache.see_changes(self._fleet, now - self._setup.index_lag_s)
        if self._setup.together:
            self._place(requests, now, frozenset())
        else:
            for request in requests:
                self._place([request], now, frozenset())

    def _place(self, requests: list[int], now: float, excluded: frozenset[str]) -> None:
        asks = [self._ask(request, now, excluded) for request in requests]
        if self._entry is not None and not excluded:
            self._begin(self._entry.arrive(requests, asks, now), now)
        else:
            self._begin(self._routers.place(requests, asks, now), now)

    def _begin(self, placed: Iterable[tuple[int, Fate | Shared | None]], now: float) -> None:
        """Send what is placed to where it is placed, in this order."""
        for request, booking in placed:
            if booking is None or isinstance(booking, Outcome):
                self._end(request, booking or Outcome.NO_ENDPOINT, now)
                continue
            self._bookings[request] = booking
            prefill, decode = booking.placement.prefill, booking.placement.decode
            if prefill is not None:
                self._send(self._workload.requests + request, self._members.number[prefill.id], now)
            elif decode is not None:
                self._send(request, self._members.number[decode.id], now)

    def _ask(self, request: int, now: float, excluded: frozenset[str]) -> Ask:
        routers = self._routers
        if self._setup.given_hit_tokens:
            self._hits[:] = self._setup.given_hit_tokens[request] // BLOCK_TOKENS
        else:
            kv_cache.believed_hits(
                self._fleet.legs, self._fleet.chain, self._fleet.viewed, request, int(now * 1e3), routers.serving[request], routers.many,
                self._hits,
            )  # fmt: skip
        slots = self._hits.nonzero()[0]
        prompt = int(self._cells[request * fl.LEG + fl.PROMPT])
        most = self._setup.max_tokens[request] if self._setup.max_tokens else None
        return Ask(
            prompt_tokens=prompt,
            max_tokens=most,
            length_class=self._setup.kinds[request] if self._setup.kinds else class_of("chat", "", False, most, prompt),
            output_tokens=int(self._cells[request * fl.LEG + fl.OUTPUT]) if self._setup.known_lengths else None,
            tokens_per_chunk=float(BLOCK_TOKENS),
            hits=Hits(slots.astype(np.uint16), self._hits[slots].astype(np.int32)),
            slo=self._setup.slo,
            excluded=excluded,
        )

    def _send(self, leg: int, w: int, now: float) -> None:
        """Hand a leg with a prompt to compute to worker w."""
        request, routers = leg % self._workload.requests, self._routers
        kv_cache.announce(
            self._fleet.legs, self._fleet.chain, self._fleet.viewed, leg, w, int((now + ANNOUNCED_S) * 1e3), routers.serving[request],
            routers.many,
        )  # fmt: skip
        if self._too_long(leg, w):
            self._fail(request, Outcome.BAD_REQUEST, now)
            return
        front_s = self._setup.front_end.constant_s
        front_s += self._setup.front_end.per_token_s * self._cells[leg * fl.LEG + fl.PROMPT]
        if front_s == 0.0:
            engines.enqueue(self._fleet.legs, self._fleet.workers, leg, w, False)
        else:
            self._fleet.legs[leg, fl.WORKER] = w
            booking = self._bookings[request]
            self._clock.at(now + front_s, lambda _now: self._reach(leg, w, booking))

    def _reach(self, leg: int, w: int, booking: Booking | Shared) -> None:
        """A leg is through its worker's front end, unless it has been placed anew or given up meanwhile."""
        if self._bookings.get(leg % self._workload.requests) is booking:
            engines.enqueue(self._fleet.legs, self._fleet.workers, leg, w, False)

    def _too_long(self, leg: int, w: int) -> bool:
        tokens = self._cells[leg * fl.LEG + fl.PROMPT] + self._cells[leg * fl.LEG + fl.OUTPUT]
        return tokens > self._most_tokens[w]

    def _hear(self, logged: int) -> None:
        """Tell the bookings what the engines logged, in order of time."""
        if not logged:
            return
        order = np.argsort(self._fleet.log_s[:logged], kind="stable") if logged > 1 else (0,)
        log, times = self._fleet.log[:logged].tolist(), self._fleet.log_s[:logged].tolist()
        prefilled = [(times[entry], log[entry][1]) for entry in order if log[entry][0] == fl.PREFILLED]
        for entry in order:
            (kind, leg), now = log[entry], times[entry]
            if kind == fl.PREFILLED:
                continue
            booking = self._bookings[leg]
            if kind == fl.FIRST_TOKEN:
                booking.first_token(now)
                self._told[leg] = 1
            else:
                output = self._cells[leg * fl.LEG + fl.OUTPUT]
                if output > self._told[leg]:
                    booking.token(now, output - self._told[leg])
                booking.done(now, output)
                self._end(leg, Outcome.OK, now)
        self._order.shuffle(prefilled)  # all of one pass, or of passes that end in the same instant: their answers race
        for now, leg in prefilled:
            self._prefilled(leg - self._workload.requests, now)

    def _sync(self) -> None:
        """Tell the bookings of the tokens that have come since the last time."""
        engines.settle_all(self._fleet)
        cells, leg_s, told = self._cells, self._leg_s, self._told
        for request, before in told.items():
            generated = cells[request * fl.LEG + fl.GENERATED]
            if generated > before:
                self._bookings[request].token(leg_s[request * fl.TIMES + fl.LAST_S], generated - before)
                told[request] = generated

    def _prefilled(self, request: int, now: float) -> None:
        """A prefill leg has ended: bind a decode worker and start the transfer."""
        booking = self._bookings[request]
        booking.prefilled(now)
        decode = booking.placement.decode
        if decode is None:
            self._sync()
            decode = booking.bind_decode(now)
        if decode is None:
            self._fail(request, Outcome.NO_ENDPOINT, now)
            return
        leg, sink = self._workload.requests + request, self._members.number[decode.id]
        source = int(self._fleet.legs[leg, fl.WORKER])
        profile = self._specs[source].profile
        if self._too_long(request, sink):
            self._fail(request, Outcome.BAD_REQUEST, now)
            return
        self._cells[request * fl.LEG + fl.WORKER] = sink
        if math.isinf(profile.transfer_bytes_per_s):
            self._handed_over(request)
            return
        # A decode worker pulls the blocks it lacks, no others.
        prompt = self._cells[request * fl.LEG + fl.PROMPT]
        missing = prompt - BLOCK_TOKENS * kv_cache.cached_blocks(self._fleet, sink, request, prompt // BLOCK_TOKENS)
        self._links.start(request, source, sink, float(profile.kv_bytes_per_token * missing), now)

    def _transferred(self, now: float) -> None:
        if self._links.next_end_s <= now:
            for request in self._links.take_ended(now):
                self._handed_over(request)

    def _handed_over(self, request: int) -> None:
        self._drop_prefill(request)
        engines.enqueue(self._fleet.legs, self._fleet.workers, request, int(self._fleet.legs[request, fl.WORKER]), True)

    def _drop_prefill(self, request: int) -> None:
        leg = self._workload.requests + request
        if leg < len(self._fleet.legs) and self._fleet.legs[leg, fl.STATE] != fl.IDLE:
            engines.withdraw(self._fleet, leg)

    def _fail(self, request: int, outcome: Outcome, now: float) -> None:
        """Give a request up, wherever it stands."""
        booking = self._bookings.get(request)
        if booking is not None:
            booking.done(now)
        self._withdraw(request, now)
        self._end(request, outcome, now)

    def _withdraw(self, request: int, now: float) -> None:
        """Take both legs of a request from wherever they stand."""
        self._links.forget(request, now)
        self._drop_prefill(request)
        if self._fleet.legs[request, fl.STATE] in (fl.WAITING, fl.RUNNING_LEG):
            engines.withdraw(self._fleet, request)

    def _end(self, request: int, outcome: Outcome, now: float) -> None:
        self._outcomes[request] = outcome
        self._open -= 1
        if self._entry is not None:
            self._entry.over(request, outcome is Outcome.OK, now)
        if self._control is not None:
            self._control.ended.append(request)
        self._bookings.pop(request, None)
        self._told.pop(request, None)
        gap_s = self._workload.gap_s
        for follower in self._followers.pop(request, ()):
            self._clock.at(max(self._clock.now, now + float(gap_s[follower])), lambda _now, one=follower: self._late.append(one))  # type: ignore[misc]

    # -- workers -------------------------------------------------------------------------------------------------

    def _die(self, w: int, now: float) -> None:
        """Worker w is gone with its KV. What streamed there is cut; what had no token yet is placed again."""
        if not np.isnan(self._members.left_s[w]):
            return  # it has drained
        requests = self._workload.requests
        self._members.leave(w, now)
        lost = {*(int(leg) % requests for leg in self._legs_at(w)), *self._links.drop(w, now)}
        self._sync()
        again: list[int] = []
        for request in sorted(one for one in lost if self._outcomes[one] is None):
            if request in self._told:
                self._fail(request, Outcome.UPSTREAM_FAILED, now)
                continue
            self._bookings.pop(request).done(now)
            self._withdraw(request, now)
            again.append(request)
        fl.reset_worker(self._fleet, w, self._specs[w].profile)
        for request in again:
            self._place([request], now, frozenset({self._specs[w].id}))

    def _legs_at(self, w: int) -> NDArray[np.int64]:
        """Legs that wait or run at worker w, are kept there for a transfer, or are on their way to it."""
        found: NDArray[np.int64] = np.flatnonzero((self._fleet.legs[:, fl.WORKER] == w) & (self._fleet.legs[:, fl.STATE] != fl.OVER))
        return found

    def _report(self, now: float) -> None:
        """All workers measure their load; the router hears it after the lag."""
        engines.measure(self._fleet, self._loads)
        loads = self._loads.tolist()
        heard = [
            (
                self._specs[w].id,
                Load(running, waiting, tokens, used * BLOCK_TOKENS, self._specs[w].profile.kv_tokens, w in self._members.draining),
            )
            for w, (running, waiting, tokens, used) in enumerate(loads)
            if w in self._members.live
        ]
        if self._setup.report_lag_s > 0.0:
            self._clock.at(now + self._setup.report_lag_s, lambda later: self._tell(heard, later))
        else:
            self._tell(heard, now)
        self._samples.append(
            Sample(now, *self._loads[:, (0, 1, 3)].T.copy(), *self._fleet.workers[:, (fl.HIT_TOKENS, fl.PROMPT_TOKENS)].T.copy())
        )
        for w in sorted(self._members.draining & self._members.live):
            if not self._legs_at(w).size:
                self._members.emptied(w, now)
        self._clock.at(now + self._setup.report_period_s, self._report)

    def _tell(self, heard: list[tuple[str, Load]], now: float) -> None:
        self._sync()
        for worker_id, load in heard:
            self._routers.report(worker_id, load, now)

    def _result(self) -> Replay:
        requests = self._workload.requests
        first, last = self._fleet.times[:requests].T.copy()
        span_s = float(np.nanmax(np.append(last, self._clock.now if np.isnan(last).all() else 0.0)))
        return Replay(
            workload=self._workload,
            setup=self._setup,
            arrival_s=self._arrival_s,
            first_s=first,
            last_s=last,
            outcomes=[one or Outcome.NO_ENDPOINT for one in self._outcomes],
            worker=self._fleet.legs[:requests, fl.WORKER].copy(),
            gaps=self._fleet.gaps,
            counters=self._fleet.workers,
            busy_s=self._fleet.seconds[:, fl.BUSY_S].copy(),
            worker_s=self._members.paid_s(span_s),
            span_s=span_s,
            samples=self._samples,
        )


class Hits(msgspec.Struct, frozen=True):
    """Which slots hold how many leading blocks; fits the scheduler's `Held`."""

    slots: NDArray[np.uint16]
    chunks: NDArray[np.int32]
