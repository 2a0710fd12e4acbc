"""`lmetric` by hand: prompt tokens to compute, those queued included, times the batch with the newcomer.

Profile `round`: a pass of n new tokens lasts 10 ms + 0.1 ms a token, and at most 1,000 tokens go through a pass.
"""

from penstock_core.endpoint import Role


def prices(booking):
    return {one.decode or one.prefill: one.cost for one in booking.placement.candidates}


def look(build, scheduler, now, tokens, hits=None):
    """What a prompt would cost on each endpoint; nothing stays booked."""
    ask = build.ask(tokens, explain=True, hits=build.Hits(hits) if hits else None)
    booking = scheduler.place([ask], now)[0]
    booking.done(now)
    return prices(booking)


def test_the_price_is_new_tokens_with_the_queued_times_requests_with_the_newcomer(build) -> None:
    """3,000 tokens queued at a, b holds 5 chunks of 64: (3,000 + 500) · 2 and (500 − 320) · 1."""
    scheduler = build.scheduler([build.endpoint("a", slot=0), build.endpoint("b", slot=1)], "lmetric")
    scheduler.place([build.ask(3_000, excluded=frozenset({"b"}))], 0.0)
    assert look(build, scheduler, 0.0, 500, {1: 5}) == {"a": 7_000.0, "b": 180.0}


def test_tokens_leave_the_price_pass_by_pass(build) -> None:
    """A full pass of 1,000 lasts 110 ms: at 115 ms 2,000 are left; after the first token only the batch is."""
    scheduler = build.scheduler([build.endpoint("a")], "lmetric")
    booking = scheduler.place([build.ask(3_000)], 0.0)[0]
    assert look(build, scheduler, 0.001, 500) == {"a": 7_000.0}
    assert look(build, scheduler, 0.115, 500) == {"a": 5_000.0}
    booking.first_token(0.330)
    assert look(build, scheduler, 0.331, 500) == {"a": 1_000.0}
    booking.done(0.4)
    assert look(build, scheduler, 0.4, 500) == {"a": 500.0}


def test_a_hit_is_worth_more_where_the_batch_is_larger_but_not_everything(build) -> None:
    """Holder with two streams against an idle one: (1,000 − 640) · 3 = 1,080 loses to 1,000; with 768 held 696 wins."""
    scheduler = build.scheduler([build.endpoint("a", slot=0), build.endpoint("b", slot=1)], "lmetric")
    for _ in range(2):
        scheduler.place([build.ask(100, excluded=frozenset({"b"}))], 0.0)[0].first_token(0.1)
    for chunks, cost, winner in ((10, 1_080.0, "b"), (12, 696.0, "a")):
        booking = scheduler.place([build.ask(1_000, hits=build.Hits({0: chunks}), explain=True)], 1.0)[0]
        assert prices(booking) == {"a": cost, "b": 1_000.0}
        assert booking.placement.decode.id == winner
        booking.done(1.0)


def test_after_a_prefill_elsewhere_the_smallest_batch_decodes(build) -> None:
    """Whatever the lengths: the third stream of three goes where one has ended."""
    endpoints = [build.endpoint("p", Role.PREFILL), build.endpoint("x", Role.DECODE), build.endpoint("y", Role.DECODE)]
    scheduler = build.scheduler(endpoints, "lmetric")
    first, second, third = scheduler.place([build.ask(tokens) for tokens in (900, 100, 100)], 0.0)
    taken = first.bind_decode(0.1).id
    assert {taken, second.bind_decode(0.1).id} == {"x", "y"}
    first.done(0.2)
    assert third.bind_decode(0.3).id == taken
