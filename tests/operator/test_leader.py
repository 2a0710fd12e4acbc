"""Who may lead, in time that passes by arithmetic, on a Lease in memory."""

import asyncio
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
from penstock_operator.api_server import ApiError, Conflict
from penstock_operator.kinds import ObjectKind
from penstock_operator.leader import Leader, LeaseTimes, may_take

TIMES = LeaseTimes(15.0, 10.0, 2.0)


class Store:
    """One Lease with optimistic locking; `away` refuses everything."""

    def __init__(self, time: "Time | None" = None) -> None:
        self.time = time or Time()
        self.kept_at = 0.0
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.away = False
        self.user: dict[str, Any] = {}

    async def read(self, kind: ObjectKind, namespace: str, name: str) -> dict[str, Any] | None:
        self._here()
        return deepcopy(self.lease)

    async def create(self, kind: ObjectKind, namespace: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self._here()
        if self.lease is not None:
            raise Conflict("there is one")
        return self._keep(body)

    async def replace(self, kind: ObjectKind, namespace: str, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self._here()
        if body["metadata"]["resourceVersion"] != str(self.version):
            raise Conflict("changed")
        return self._keep(body)

    async def who_am_i(self) -> dict[str, Any]:
        self._here()
        return self.user

    def _here(self) -> None:
        if self.away:
            raise ApiError("no connection")

    def _keep(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.kept_at = self.time.now
        self.lease = deepcopy(dict(body))
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return deepcopy(self.lease)


class Time:
    """A clock that `pause` moves on; `at` calls something when a moment has come."""

    def __init__(self) -> None:
        self.now = 100.0
        self.agenda: list[tuple[float, Any]] = []

    def clock(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        self.now += seconds
        for moment, act in [item for item in self.agenda if item[0] <= self.now]:
            self.agenda.remove((moment, act))
            act()


def candidate(store: Store, time: Time, identity: str) -> Leader:
    return Leader(store, "team", identity, TIMES, clock=time.clock, pause=time.pause)


def test_who_may_take_a_lease() -> None:
    """A free one, one's own, and one that has not changed for longer than it holds."""
    held = {"holderIdentity": "a", "leaseDurationSeconds": 15}
    assert may_take({}, "b", 0.0) and may_take({**held, "holderIdentity": ""}, "b", 0.0) and may_take(held, "a", 0.0)
    assert not may_take(held, "b", 15.0)
    assert may_take(held, "b", 15.1)


def test_a_second_one_waits_for_the_lease_to_run_out_and_no_longer() -> None:
    """The first never renews: the second leads after duration plus one retry at most, counted from when it first looked."""
    store, time = Store(), Time()

    async def story() -> float:
        await candidate(store, time, "a").acquire()
        began = time.now
        await candidate(store, time, "b").acquire()
        return time.now - began

    took_s = asyncio.run(story())
    assert TIMES.duration_s < took_s <= TIMES.duration_s + TIMES.retry_period_s
    assert store.lease is not None and store.lease["spec"]["leaseTransitions"] == 1


def test_a_leader_without_an_api_server_gives_up_before_another_may_lead() -> None:
    """Renewals fail from second 20 on: `hold` returns a renew deadline after the last one, five seconds before the Lease is free."""
    time = Time()
    store = Store(time)

    async def story() -> float:
        leader = candidate(store, time, "a")
        await leader.acquire()
        time.agenda.append((time.now + 20.0, lambda: setattr(store, "away", True)))
        await leader.hold()
        return time.now - store.kept_at

    assert asyncio.run(story()) <= TIMES.renew_deadline_s < TIMES.duration_s


def test_a_short_absence_of_the_api_server_costs_no_leadership() -> None:
    """Away for six seconds: renewed afterwards; only an absence that stays ends it."""
    store, time = Store(), Time()

    async def story() -> float:
        leader = candidate(store, time, "a")
        await leader.acquire()
        began = time.now
        for moment, away in ((10.0, True), (16.0, False), (100.0, True)):
            time.agenda.append((began + moment, lambda away=away: setattr(store, "away", away)))
        await leader.hold()
        return time.now - began

    assert asyncio.run(story()) > 100.0


def test_a_leader_that_sees_another_holder_ends_at_once() -> None:
    """Somebody has written himself into the Lease: no second leader, not even for the renew deadline."""
    store, time = Store(), Time()

    def usurp() -> None:
        assert store.lease is not None
        store.lease["spec"] |= {"holderIdentity": "b", "renewTime": "now"}
        store._keep(store.lease)

    async def story() -> float:
        leader = candidate(store, time, "a")
        await leader.acquire()
        usurped_at = time.now + 11.0
        time.agenda.append((usurped_at, usurp))
        await leader.hold()
        return time.now - usurped_at

    assert asyncio.run(story()) <= TIMES.retry_period_s


def test_a_released_lease_is_taken_at_once() -> None:
    """Told to end, a leader empties the Lease; the next one does not wait."""
    store, time = Store(), Time()

    async def story() -> float:
        leader = candidate(store, time, "a")
        await leader.acquire()
        await leader.release()
        began = time.now
        await candidate(store, time, "b").acquire()
        return time.now - began

    assert asyncio.run(story()) == 0.0


@pytest.mark.parametrize(
    ("user", "owners"),
    [
        ({"username": "system:serviceaccount:team:op", "uid": "u1"}, [("ServiceAccount", "op", "u1")]),
        ({"username": "system:serviceaccount:other:op", "uid": "u1"}, []),  # an owner in another namespace would be collected at once
        ({"username": "jane"}, []),
        ({}, []),
    ],
)
def test_the_lease_goes_with_the_operators_account(user: dict[str, Any], owners: list[tuple[str, str, str]]) -> None:
    """Uninstalling takes the account, and the garbage collector then the Lease; a person's operator leaves it as it is."""
    store = Store()
    store.user = user
    asyncio.run(candidate(store, store.time, "a").acquire())
    assert store.lease is not None
    found = store.lease["metadata"].get("ownerReferences", [])
    assert [(one["kind"], one["name"], one["uid"]) for one in found] == owners


def test_a_lease_from_before_gets_its_owner() -> None:
    """Taking a Lease over writes the owner too."""
    store = Store()
    asyncio.run(candidate(store, store.time, "a").acquire())
    asyncio.run(candidate(store, store.time, "a").release())
    store.user = {"username": "system:serviceaccount:team:op", "uid": "u1"}
    asyncio.run(candidate(store, store.time, "b").acquire())
    assert store.lease is not None
    assert store.lease["metadata"]["ownerReferences"][0]["uid"] == "u1"
