"""What routers tell one another of their bookings makes their beliefs alike, and nothing is left of it at the end."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock_core.endpoint import Role
from penstock_router import columns as col
from penstock_router import kernel
from penstock_router.books import Books

pytestmark = pytest.mark.usefixtures("each_kernel")

BELIEVED = [col.BOOKED, col.PROMPTS, col.COMPUTED, col.PASSING, col.STREAMS, col.CONTEXT, col.CELLS_USED, col.KV_BOOKED, col.RUNNING]


ACTIONS = ("prefilled", "first_token", "token", "failed", "done")


class Pair:
    """Two routers before the same endpoints; what one tells waits in `told` until `carry`."""

    def __init__(self, build, endpoints, **options):
        self.schedulers = [build.scheduler(endpoints, seed=seed) for seed in (1, 2)]
        self.told = ([], [])
        self.books = [Books(scheduler, self.told[at].append, **options) for at, scheduler in enumerate(self.schedulers)]

    def place(self, at, ask, now):
        self.books[at].settle(now)
        (booking,) = self.schedulers[at].place([ask], now)
        return self.books[at].share(booking, ask, now)

    def carry(self, now):
        for at in (0, 1):
            self.books[at].progress()
            for news in self.told[at]:
                self.books[1 - at].hear(str(at), news)
            self.told[at].clear()
        for books in self.books:
            books.settle(now)

    def believed(self, now):
        for scheduler in self.schedulers:
            for r in range(len(scheduler.beliefs.rows)):
                kernel.advance(scheduler.beliefs.rows, r, now)
        return [scheduler.beliefs.rows[:, BELIEVED] for scheduler in self.schedulers]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_with_all_news_carried_two_routers_believe_the_same(build, data):
    """Whatever is placed, streams and ends at either of them, undivided or not; and in the end nothing is booked."""
    roles = data.draw(st.sampled_from([[Role.BOTH] * 3, [Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE]]))
    pair = Pair(build, [build.endpoint(f"w{i}", role, slot=i, connector="mooncake") for i, role in enumerate(roles)])
    now, shared = 1.0, []
    for _ in range(data.draw(st.integers(1, 20))):
        now += data.draw(st.floats(0.001, 0.2))
        if not shared or data.draw(st.booleans()):
            shared.append(pair.place(data.draw(st.integers(0, 1)), build.ask(data.draw(st.integers(1, 3_000))), now))
        else:
            act(
                data.draw(st.sampled_from(shared)), data.draw(st.sampled_from(("prefilled", "first_token", "token", "failed", "done"))), now
            )
        pair.carry(now)
        first, second = pair.believed(now)
        np.testing.assert_allclose(first, second)
    for one in shared:
        one.done(now + 1.0, 7)
        one.done(now + 2.0)
    pair.carry(now + 2.0)
    for scheduler in pair.schedulers:
        assert set(build.counts(scheduler).values()) == {0.0}


def act(shared, action, now):
    if action == "prefilled" and shared.placement.prefill is not None and shared.placement.decode is None:
        shared.prefilled(now)
        shared.bind_decode(now)
    elif action == "failed" and shared.placement.prefill is not None:
        shared.prefill_failed(now)
        shared.bind_decode(now)
    elif action == "first_token" and shared.placement.decode is not None:
        shared.first_token(now)
    elif action in ("token", "done"):
        getattr(shared, action)(now)


def test_a_router_avoids_what_another_has_booked(build):
    """One long prompt at each router: told of the first, the second goes to the idle worker, whoever draws what."""
    for first in (0, 1):
        pair = Pair(build, [build.endpoint("a", slot=0), build.endpoint("b", slot=1)])
        taken = pair.place(first, build.ask(5_000), 1.0).placement.decode.id
        pair.carry(1.0)
        assert pair.place(1 - first, build.ask(5_000), 1.01).placement.decode.id != taken


def test_lengths_of_answers_are_learned_from_all_routers_and_times_are_not(build):
    """A completion elsewhere counts as one here; what was predicted elsewhere is nothing to judge oneself by."""
    pair = Pair(build, [build.endpoint("a", slot=0)])
    for _ in range(40):
        one = pair.place(0, build.ask(100), 1.0)
        pair.carry(1.0)
        one.first_token(1.1)
        one.done(2.0, 30)
        pair.carry(2.0)
    mine, theirs = pair.schedulers
    assert mine.lengths.expected_tokens(None, None) == theirs.lengths.expected_tokens(None, None) < 200
    assert mine.profiles.residuals.errors > theirs.profiles.residuals.errors == 0


def test_news_of_endpoints_that_are_not_known_are_passed_over(build):
    """A snapshot may be older here than there."""
    pair = Pair(build, [build.endpoint("a", slot=0)])
    pair.schedulers[1].set_endpoints([build.endpoint("b", slot=1)], 0.5)
    one = pair.place(0, build.ask(100), 1.0)
    pair.carry(1.0)
    one.first_token(1.1)
    one.done(1.2, 3)
    pair.carry(1.2)
    assert set(build.counts(pair.schedulers[1]).values()) == {0.0}


def test_a_router_that_is_gone_leaves_nothing_behind(build):
    """Its prompts and streams are given back by those who had heard of them; late news of it do no harm."""
    pair = Pair(build, [build.endpoint("a", slot=0)])
    waits, streams = pair.place(0, build.ask(900), 1.0), pair.place(0, build.ask(900), 1.0)
    streams.first_token(1.2)
    pair.carry(1.2)
    assert pair.schedulers[1].beliefs.rows[:, col.RUNNING].sum() == 2
    pair.books[1].forget("0", 1.5)
    assert set(build.counts(pair.schedulers[1]).values()) == {0.0}
    waits.done(2.0)
    pair.carry(2.0)
    assert set(build.counts(pair.schedulers[1]).values()) == {0.0}


def test_mirrored_bookings_stand_opposite_and_lapse(build):
    """One mirror among four workers: two further; gone after its time."""
    pair = Pair(build, [build.endpoint(f"w{i}", slot=i) for i in range(4)], mirrors=1, mirror_s=0.05)
    taken = int(pair.place(0, build.ask(400), 1.0).placement.decode.id[1])
    books, scheduler = pair.books[0], pair.schedulers[0]
    running = {endpoint.id: scheduler.beliefs.rows[r, col.RUNNING] for r, endpoint in enumerate(scheduler.beliefs.endpoints) if endpoint}
    assert {name for name, count in running.items() if count} == {f"w{taken}", f"w{(taken + 2) % 4}"}
    books.settle(1.049)
    assert scheduler.beliefs.rows[:, col.RUNNING].sum() == 2
    books.settle(1.05)
    assert scheduler.beliefs.rows[:, col.RUNNING].sum() == 1
