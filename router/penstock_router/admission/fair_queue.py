"""The order in which waiting requests start: in time before late, priority, the tenants' fair share, then least slack.

`line` pushes, asks for the first and takes it. Fairness is start-time fair queueing (Goyal, Vin, Cheng 1996) between tenants:
whoever has had least service for its weight goes first, so that of two tenants with requests waiting neither gets ahead by more
than two requests of the largest cost. No clock, no prediction: costs and latest starts are given.
"""

import heapq
import math
from collections.abc import Iterator
from typing import Generic, TypeVar

from penstock_router.admission.claim import Claim


class Place:
    """A request's place in the queue. `line` keeps one per request, and subclasses it with what it must know besides.

    Most requests never wait: what only those that do need is set on them then, the class says what holds for the others.
    """

    latest_start_s = math.inf
    """Started later, it misses its target: then it goes after those that can still meet theirs."""
    late = False
    number = 0
    """Order of coming into the queue; 0: not in it."""

    def __init__(self, claim: Claim, cost: float) -> None:
        self.claim = claim
        self.cost = cost
        """Tokens: input + 2 · output, the output expected at first."""

    @property
    def queued(self) -> bool:
        return self.number > 0


_P = TypeVar("_P", bound=Place)


class _Share:
    """How far one tenant's service has come, in cost ÷ weight."""

    __slots__ = ("lanes", "next_start")

    def __init__(self, virtual: float) -> None:
        self.next_start = virtual
        self.lanes = 0


class _Lane(Generic[_P]):
    """Waiting requests of one tenant and priority. Those that left stay in the heaps until they come up."""

    __slots__ = ("cost", "count", "late", "late_cost", "priority", "share", "tenant", "timely", "weight")

    def __init__(self, claim: Claim, share: _Share) -> None:
        self.tenant, self.priority, self.weight = claim.tenant, claim.priority, claim.weight
        self.share = share
        self.timely: list[tuple[float, int, _P]] = []
        self.late: list[tuple[float, int, _P]] = []
        self.cost = self.late_cost = 0.0
        self.count = 0

    def first(self, now: float) -> _P | None:
        """The one to go first; those whose latest start has passed are late from now on."""
        self._tidy(self.timely)
        while self.timely and self.timely[0][0] < now:
            item = heapq.heappop(self.timely)
            item[2].late = True
            self.late_cost += item[2].cost
            heapq.heappush(self.late, item)
            self._tidy(self.timely)
        if self.timely:
            return self.timely[0][2]
        self._tidy(self.late)
        return self.late[0][2] if self.late else None

    @staticmethod
    def _tidy(heap: list[tuple[float, int, _P]]) -> None:
        while heap and heap[0][2].number != heap[0][1]:
            heapq.heappop(heap)

    def waiting(self) -> Iterator[_P]:
        yield from (item[2] for item in (*self.timely, *self.late) if item[2].number == item[1])


class FairQueue(Generic[_P]):
    """State: the lanes, each tenant's share, and the virtual time: the latest start among those begun."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, int], _Lane[_P]] = {}
        self._shares: dict[str, _Share] = {}
        self._virtual = 0.0
        self._pushed = 0
        self.count = 0
        self.cost = 0.0

    @property
    def timely(self) -> bool:
        """Whether anybody waits who was not late when last looked at."""
        return any(lane.cost > lane.late_cost for lane in self._lanes.values())

    def push(self, place: _P) -> None:
        """Wait."""
        claim = place.claim
        key = claim.tenant, claim.priority
        lane = self._lanes.get(key)
        if lane is None:
            share = self._share(claim.tenant)
            if not share.lanes:
                share.next_start = max(share.next_start, self._virtual)  # what it did not use while it had nothing waiting is gone
            share.lanes += 1
            lane = self._lanes[key] = _Lane(claim, share)
        self._pushed += 1
        place.number = self._pushed
        heapq.heappush(lane.late if place.late else lane.timely, (place.latest_start_s, place.number, place))
        lane.count += 1
        lane.cost += place.cost
        lane.late_cost += place.cost if place.late else 0.0
        self.count += 1
        self.cost += place.cost

    def heads(self, now: float) -> list[_P]:
        """The first of each tenant and priority, who should start next coming first; they stay until `leave`."""
        ranked = []
        for number, lane in enumerate(self._lanes.values()):
            place = lane.first(now)
            if place is not None:
                ranked.append((place.late, -lane.priority, lane.share.next_start, number, place))
        ranked.sort()
        return [item[4] for item in ranked]

    def last(self, now: float) -> _P | None:
        """Who is the first to go when there is no room to wait: late, of the lowest priority, of the tenant furthest ahead."""
        worst: _Lane[_P] | None = None
        most: tuple[int, float] = (0, 0.0)
        for lane in self._lanes.values():
            lane.first(now)
            rank = (-lane.priority, lane.share.next_start + lane.cost / lane.weight)
            if worst is None or rank > most:
                worst, most = lane, rank
        return (
            max(worst.waiting(), key=lambda place: (place.late, place.latest_start_s, place.number), default=None)
            if worst is not None
            else None
        )

    def demote(self, place: _P) -> None:
        """It cannot meet its target any more: behind those that can."""
        self.leave(place)
        place.late = True
        self.push(place)

    def leave(self, place: _P) -> None:
        """Out of the queue; `charge` it too if it starts."""
        if not place.queued:
            return
        place.number = 0
        key = place.claim.tenant, place.claim.priority
        lane = self._lanes[key]
        lane.count -= 1
        lane.cost -= place.cost
        lane.late_cost -= place.cost if place.late else 0.0
        self.count -= 1
        self.cost = self.cost - place.cost if self.count else 0.0
        if not lane.count:
            lane.share.lanes -= 1
            del self._lanes[key]

    def charge(self, place: _P) -> None:
        """Count what starts as service to its tenant, whether it has waited or not."""
        share = self._share(place.claim.tenant)
        start = share.next_start if share.lanes else max(share.next_start, self._virtual)
        self._virtual = max(self._virtual, start)
        share.next_start = start + place.cost / place.claim.weight

    def correct(self, claim: Claim, more: float) -> None:
        """It cost that much more (or less) than was charged when it started."""
        share = self._share(claim.tenant)
        share.next_start += more / claim.weight
        if not share.lanes and share.next_start <= self._virtual:
            del self._shares[claim.tenant]  # as good as new

    def ahead_of(self, place: _P) -> float:
        """Cost that starts before a newcomer would: fluid shares of the tenants of its own priority, all of the higher ones.

        Those that are late go behind it; the others of its own tenant, being there longer, go before it.
        """
        claim = place.claim
        own = self._lanes.get((claim.tenant, claim.priority))
        share = self._shares.get(claim.tenant)
        start = self._virtual if share is None else share.next_start if share.lanes else max(share.next_start, self._virtual)
        finish = start + ((own.cost - own.late_cost if own is not None else 0.0) + place.cost) / claim.weight
        ahead = 0.0
        for lane in self._lanes.values():
            timely = lane.cost - lane.late_cost
            if lane is own or lane.priority > claim.priority:
                ahead += timely
            elif lane.priority == claim.priority:
                ahead += min(timely, max(0.0, finish - lane.share.next_start) * lane.weight)
        return ahead

    def waiting(self) -> Iterator[_P]:
        """All that wait, in no order."""
        for lane in list(self._lanes.values()):
            yield from lane.waiting()

    def _share(self, tenant: str) -> _Share:
        share = self._shares.get(tenant)
        if share is None:
            share = self._shares[tenant] = _Share(self._virtual)
        return share
