"""The order of those that wait: fairness between tenants for any traffic, priority, slack, and who goes when it is full."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_router.admission.claim import Claim
from penstock_router.admission.fair_queue import FairQueue, Place


def place(tenant: str = "t", cost: float = 1.0, *, weight: float = 1.0, priority: int = 0, latest: float = math.inf) -> Place:
    made = Place(Claim(tenant, weight, priority), cost)
    made.latest_start_s = latest
    return made


def serve(queue: FairQueue[Place], now: float = 0.0) -> Place:
    first = queue.heads(now)[0]
    queue.leave(first)
    queue.charge(first)
    return first


def order(queue: FairQueue[Place], now: float = 0.0) -> list[Place]:
    found = []
    while queue.count:
        found.append(serve(queue, now))
    return found


COSTS = st.integers(1, 10_000)


@settings(deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 7.0]), min_size=2, max_size=10),
    costs=st.lists(COSTS, min_size=40, max_size=400),
    head_start=st.lists(COSTS, max_size=30),
)
def test_tenants_that_wait_stay_within_two_of_the_largest_requests(weights, costs, head_start):
    """Whatever the costs and weights, and whatever a tenant had before: of two with requests waiting, neither gets further ahead in
    cost ÷ weight than one largest request of each."""
    queue: FairQueue[Place] = FairQueue()
    for cost in head_start:
        queue.charge(place("t0", cost, weight=weights[0]))
    largest = [max(head_start, default=0) / weights[0]] + [0.0] * (len(weights) - 1)
    waiting = [0] * len(weights)
    for number, cost in enumerate(costs):
        tenant = number % len(weights)
        queue.push(place(f"t{tenant}", cost, weight=weights[tenant]))
        largest[tenant] = max(largest[tenant], cost / weights[tenant])
        waiting[tenant] += 1
    served = [0.0] * len(weights)
    while all(waiting):
        first = serve(queue)
        tenant = int(first.claim.tenant[1:])
        served[tenant] += first.cost / first.claim.weight
        waiting[tenant] -= 1
        if all(waiting):
            for one in range(len(weights)):
                for other in range(one):
                    assert abs(served[one] - served[other]) <= largest[one] + largest[other] + 1e-6


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), COSTS, st.integers(-2, 2), st.floats(0, 10)), max_size=60), st.data())
def test_counts_agree_with_who_is_there(pushed, data):
    """After any comings, leavings and demotions: as many as there are, each once, and nothing left at the end."""
    queue: FairQueue[Place] = FairQueue()
    there: list[Place] = []
    for tenant, cost, priority, latest in pushed:
        one = place(f"t{tenant}", cost, priority=priority, latest=latest)
        queue.push(one)
        there.append(one)
        deed = data.draw(st.sampled_from(["nothing", "leave", "demote"]))
        chosen = data.draw(st.sampled_from(there))
        if deed == "leave":
            queue.leave(chosen)
            there.remove(chosen)
        elif deed == "demote":
            queue.demote(chosen)
        assert queue.count == len(there)
        assert sorted(map(id, queue.waiting())) == sorted(map(id, there))
        assert queue.cost == sum(waiting.cost for waiting in there)
    left = order(queue, 5.0)
    assert sorted(map(id, left)) == sorted(map(id, there))
    assert (queue.count, queue.cost, queue.timely, queue.heads(0.0)) == (0, 0.0, False, [])


def test_higher_priority_goes_first_then_least_slack():
    """And those whose target is lost come after all that can meet theirs, whatever their priority."""
    queue: FairQueue[Place] = FairQueue()
    relaxed, urgent, important, lost = place(latest=9.0), place(latest=5.0), place(priority=10), place(priority=10, latest=1.0)
    for one in (relaxed, lost, urgent, important):
        queue.push(one)
    assert order(queue, now=2.0) == [important, urgent, relaxed, lost]
    assert lost.late and not urgent.late


def test_a_tenant_that_comes_back_has_saved_nothing_up_and_owes_nothing():
    """After a busy hour of another, a newcomer gets its share from now on, not the hour it was away."""
    queue: FairQueue[Place] = FairQueue()
    for _ in range(1_000):
        queue.charge(place("busy", 10.0))
    for _ in range(10):
        queue.push(place("busy", 10.0))
        queue.push(place("new", 10.0))
    first = [one.claim.tenant for one in order(queue)[:10]]
    assert 4 <= first.count("new") <= 6


def test_a_request_that_cost_more_than_thought_sets_its_tenant_back():
    """Charged 10, cost 40: the other tenant has four turns of 10 before it is its turn again."""
    queue: FairQueue[Place] = FairQueue()
    for _ in range(6):
        queue.push(place("long", 10.0))
        queue.push(place("short", 10.0))
    first = serve(queue)
    assert first.claim.tenant == "long"
    queue.correct(first.claim, 30.0)
    assert [one.claim.tenant for one in order(queue)[:4]] == ["short"] * 4


def test_the_tenant_furthest_ahead_loses_its_last_when_there_is_no_room():
    """The one with the long backlog, not the newcomer with one request; of its own the one with most slack, late ones first."""
    queue: FairQueue[Place] = FairQueue()
    heavy = [place("heavy", 10.0, latest=float(number)) for number in range(10)]
    for one in heavy:
        queue.push(one)
    queue.push(place("light", 10.0))
    assert queue.last(now=0.0) is heavy[9]
    assert queue.last(now=0.5) is heavy[0], "its target is lost"
    low = place("light", 1.0, priority=-5)
    queue.push(low)
    assert queue.last(now=0.0) is low


def test_a_light_tenant_sees_little_of_a_heavy_tenants_backlog():
    """What goes ahead of a newcomer of equal weight is as much of the backlog as it has itself, not all of it."""
    queue: FairQueue[Place] = FairQueue()
    for _ in range(100):
        queue.push(place("heavy", 10.0))
    assert queue.ahead_of(place("light", 10.0)) <= 20.0
    assert queue.ahead_of(place("heavy", 10.0)) == 1_000.0
    assert queue.ahead_of(place("light", 10.0, priority=-1)) == 1_000.0
