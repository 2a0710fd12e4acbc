"""The line before one model's scheduler: who starts at once, who waits and how long, who is turned away and when to come again.

The router's `turn` and the simulator bring requests (`arrive`), tell of those that end or leave (`over`), and call
`settle` at `next_s`; both give back the requests whose fate is decided.
While there is room nothing waits, and all it costs is two sums. Pure: `now` is an argument, the scheduler's beliefs are all it sees.
"""

import math
from collections.abc import Sequence

import msgspec
from penstock_core.errors import Outcome

from penstock_router.admission.claim import MOST_RETRY_S, Claim, LineLimits, Turned, whole_seconds
from penstock_router.admission.fair_queue import FairQueue, Place
from penstock_router.admission.gate import Declined, Gate
from penstock_router.admission.outlook import CROWDED, LATE, OWED, TIMELY, UNJUDGED
from penstock_router.admission.pace import Pace
from penstock_router.booking import Booking
from penstock_router.scheduling import Ask, Scheduler

_EXPIRY_GRAIN_S = 0.005
_MOST_LOOKED_AT = 4


class Waiting(Place):
    """A request that has not begun, from `arrive` until it has a booking, is turned away, or leaves."""

    booking: Booking | None = None
    turned: Turned | None = None
    settled = False
    """Its fate is decided; without a booking and not turned away there is no endpoint for it."""
    over = False
    charged = False
    """Its tenant has been charged for it: only what starts while others wait counts."""
    declined: Declined | None = None
    """Why it did not start when last looked at."""
    waited = False
    held = False
    """It has waited for a first replica: its target is lost, and it is not shed for that."""
    give_up_s = math.inf
    work_s = 0.0

    def __init__(self, ask: Ask, claim: Claim, arrived_s: float) -> None:
        super().__init__(claim, 0.0)
        self.ask = ask
        self.arrived_s = arrived_s
        """When the router received it: its TTFT counts from then."""

    def spent(self, prompt_tokens: int, output_tokens: int) -> float:
        """What it really cost beyond what was charged."""
        return prompt_tokens + 2.0 * output_tokens - self.cost


class Line:
    """State: the queue, the pace, how many have started and are not over, and when to look again."""

    def __init__(self, scheduler: Scheduler, limits: LineLimits, name: str = "the model") -> None:
        self._scheduler = scheduler
        self._limits = limits
        self._name = name
        self._queue: FairQueue[Waiting] = FairQueue()
        self._gate = Gate(scheduler.lengths, scheduler.itl_margin)
        self._pace = Pace()
        self._again_s = math.inf
        self._expiry_s = math.inf  # nobody's time is up before
        self.started = 0

    @property
    def waiting(self) -> int:
        return self._queue.count

    @property
    def next_s(self) -> float:
        """When `settle` must be called at the latest; infinite while nobody waits."""
        return min(self._again_s, self._expiry_s) if self._queue.count else math.inf

    # -- coming and going -----------------------------------------------------------------------------------------

    def arrive(self, requests: Sequence[Waiting], now: float) -> list[Waiting]:
        """The requests of one turn. Gives those whose fate is decided, others that had been waiting included."""
        settled: list[Waiting] = []
        order = self._scheduler.order([one.ask for one in requests]) if len(requests) > 1 else (0,)
        for at in order:
            one = requests[at]
            if not self._queue.count and self.started < self._limits.started:
                stance = TIMELY if self._sheddable(one) else OWED
                if self._try(one, stance, now):
                    settled.append(one)
                    continue
            one.cost = one.ask.prompt_tokens + 2.0 * self._scheduler.expected_tokens(one.ask)
            self._join(one, now, settled)
        if self._queue.count:
            settled += self.settle(now)
        return settled

    def over(self, request: Waiting, prompt_tokens: int, output_tokens: int | None, now: float) -> None:
        """A request has ended: its client left while it waited, or it had started and is over. The second time does nothing.

        Its tenant pays what it really was; `output_tokens` None: not known, it stays as charged.
        """
        if request.over:
            return
        request.over = True
        if request.queued:
            self._queue.leave(request)
            if not self._queue.count:
                self._pace.tick(now, False, False)
        elif request.booking is not None:
            self.started -= 1
            if request.charged and output_tokens is not None:
                self._queue.correct(request.claim, request.spent(prompt_tokens, output_tokens))
            if self._queue.count:
                self._again_s = min(self._again_s, now)

    # -- deciding -------------------------------------------------------------------------------------------------

    def settle(self, now: float) -> list[Waiting]:
        """Start who may, turn away who can wait no longer."""
        settled: list[Waiting] = []
        self._again_s = math.inf
        self._expire(now, settled)
        while self._queue.count and self.started < self._limits.started and self._start_one(now, settled):
            pass
        self._pace.tick(now, self._queue.count > 0, self._queue.timely)
        return settled

    def _start_one(self, now: float, settled: list[Waiting]) -> bool:
        """Let the first that may start do so. One whose own targets stand in its way lets a few others pass."""
        for one in self._queue.heads(now)[:_MOST_LOOKED_AT]:
            if one.late and self._pace.pressed:
                break  # what is spare now is wanted in a moment by one that can still meet its target
            if self._try(one, self._stance(one), now):
                settled.append(one)
                return True
            declined = one.declined
            if declined is None:
                return False
            if declined.reason == "late" and not one.late:
                self._queue.demote(one)
                return True
            self._again_s = min(self._again_s, now + declined.again_s)
            if declined.reason == "busy":
                break
        return False

    def _stance(self, one: Waiting) -> int:
        if not self._sheddable(one):
            return OWED
        if one.late:
            return LATE
        return CROWDED if self._queue.count > 1 else TIMELY

    def _sheddable(self, one: Waiting) -> bool:
        return one.claim.priority <= self._limits.shed_up_to_priority and not one.held

    def _try(self, one: Waiting, stance: int, now: float) -> bool:
        """Let the scheduler place it. True when its fate is decided; else `declined` says what is in the way."""
        ask, target_s = one.ask, one.ask.slo.ttft_s
        if one.waited:  # what is left of the target is what a placement is judged by
            ask = msgspec.structs.replace(ask, waited_s=now - one.arrived_s)
        gate = self._gate
        gate.stance, gate.target_s = stance if self._limits.waiting else UNJUDGED, float(target_s)
        result = self._scheduler.attempt(ask, now, gate)
        if isinstance(result, Declined) and not self._scheduler.trusted:
            result = self._scheduler.attempt(ask, now, self._scheduler.open_gate)
        if isinstance(result, Declined):
            one.declined = result
            one.work_s = result.work_s
            if one.waited:
                self._pace.judged(result.work_s, one.cost, result.endpoints)
            return False
        one.settled = True
        if one.queued:
            self._queue.leave(one)
            self._pace.started(one.cost)
        if result is not None:
            one.booking = result
            self.started += 1
            if one.waited:
                one.charged = True
                self._queue.charge(one)
        return True

    def _join(self, one: Waiting, now: float, settled: list[Waiting]) -> None:
        """Wait, unless that is hopeless or there is no place left; then somebody is turned away."""
        limits, declined, target_s = self._limits, one.declined, one.ask.slo.ttft_s
        if not limits.waiting:
            self._turn(one, Outcome.QUEUE_FULL, None, now, settled)
            return
        if declined is None:
            one.work_s = self._pace.work_s(one.cost)
        else:
            self._pace.judged(declined.work_s, one.cost, declined.endpoints)
        if self._sheddable(one):
            most_s = limits.patience * target_s + (one.work_s if one.work_s > target_s else 0.0)
            expected_s = self._expected_s(one, now)
            if expected_s > most_s:
                self._turn(one, Outcome.SHED, expected_s, now, settled)
                return
            one.give_up_s = one.arrived_s + most_s - one.work_s
            if one.work_s < target_s:
                one.latest_start_s = one.arrived_s + target_s - one.work_s
            one.late = declined is not None and declined.reason == "late"
        one.give_up_s = max(now, min(one.give_up_s, one.arrived_s + limits.timeout_s))
        one.waited = True
        self._queue.push(one)
        if self._queue.count == 1:
            self._pace.tick(now, True, not one.late)
        self._expiry_s = min(self._expiry_s, one.give_up_s)
        if self._queue.count > limits.waiting:
            loser = self._queue.last(now)
            if loser is not None:
                self._queue.leave(loser)
                self._turn(loser, Outcome.QUEUE_FULL, None, now, settled)

    def _expected_s(self, one: Waiting, now: float) -> float:
        """Predicted TTFT of one that is about to wait."""
        ahead_s = self._queue.ahead_of(one) * self._pace.seconds_per_cost if self._queue.count else 0.0
        soonest_s = one.declined.ttft_s if one.declined is not None else one.work_s
        return now - one.arrived_s + ahead_s + soonest_s

    def _expire(self, now: float, settled: list[Waiting]) -> None:
        """Turn away whose time is up."""
        if now < self._expiry_s - _EXPIRY_GRAIN_S:
            return
        self._expiry_s = math.inf
        for place in [*self._queue.waiting()]:
            if place.give_up_s > now + _EXPIRY_GRAIN_S:
                self._expiry_s = min(self._expiry_s, place.give_up_s)
                continue
            self._queue.leave(place)
            waited_out = now - place.arrived_s >= self._limits.timeout_s - _EXPIRY_GRAIN_S
            self._turn(place, Outcome.QUEUE_TIMEOUT if waited_out else Outcome.SHED, None, now, settled)

    def _turn(self, one: Waiting, outcome: Outcome, expected_s: float | None, now: float, settled: list[Waiting]) -> None:
        target_s = one.ask.slo.ttft_s
        ahead_s = (self._queue.cost + one.cost) * self._pace.seconds_per_cost
        wait_s = self._pace.promise(max(0.0, ahead_s - max(0.0, target_s - one.work_s)), one.cost, now, MOST_RETRY_S)
        why = {
            Outcome.SHED: f"the TTFT target of {target_s:g} s cannot be met now",
            Outcome.QUEUE_FULL: f"{self._queue.count} requests of {self._name} are waiting; allowed: {self._limits.waiting}",
            Outcome.QUEUE_TIMEOUT: f"it waited {now - one.arrived_s:.1f} s for room; allowed: {self._limits.timeout_s:g} s",
        }[outcome]
        if expected_s is not None:
            why += f" (predicted: {expected_s:.1f} s)"
        one.turned = Turned(outcome, why, whole_seconds(wait_s), expected_s)
        one.settled = True
        settled.append(one)
