"""`conductor` by hand: the separate prefill times of all that wait, the prompt's own, and the hand-over.

Profile `round`: u ≤ 1,000 tokens alone take 10 ms + 0.1 ms each, more go in passes of 1,000; a hand-over takes 1 µs a token.
"""

import pytest
from penstock_core.endpoint import Load, Role
from penstock_router.policies import policy_named


def seen(booking):
    return {
        one.decode or one.prefill: (one.terms["queue"], one.terms["own"], one.terms["transfer"]) for one in booking.placement.candidates
    }


def approx(queue=0.0, own=0.0, transfer=0.0):
    return pytest.approx((queue, own, transfer))


def test_every_queued_prompt_counts_with_its_own_prefill_time(build) -> None:
    """Three of 200 tokens at a are 3 · 30 ms although one pass of 70 ms would do; b is idle and holds 320 of 500: 28 ms."""
    scheduler = build.scheduler([build.endpoint("a", slot=0), build.endpoint("b", slot=1)], "conductor")
    for _ in range(3):
        scheduler.place([build.ask(200, excluded=frozenset({"b"}))], 0.0)
    booking = scheduler.place([build.ask(500, hits=build.Hits({1: 5}), explain=True)], 0.0)[0]
    assert seen(booking) == {"a": approx(0.090, 0.060), "b": approx(0.0, 0.028)}
    assert booking.placement.decode.id == "b"
    assert booking.placement.ttft_s == pytest.approx(0.028)


def test_a_long_prompt_alone_goes_in_passes(build) -> None:
    """2,500 tokens: two passes of 110 ms and one of 60."""
    booking = build.scheduler([build.endpoint("a")], "conductor").place([build.ask(2_500, explain=True)], 0.0)[0]
    assert seen(booking) == {"a": approx(own=0.280)}


def test_a_first_token_takes_the_oldest_prompt_out_and_time_alone_none(build) -> None:
    """500, 300 and 100 tokens queued: 60 + 40 + 20 ms; a first token, and 60 go; the end of all, and nothing is left."""
    scheduler = build.scheduler([build.endpoint("a")], "conductor")
    queued = [scheduler.place([build.ask(tokens)], 0.0)[0] for tokens in (500, 300, 100)]

    def queue_s(now):
        booking = scheduler.place([build.ask(1, explain=True)], now)[0]
        booking.done(now)
        return booking.placement.candidates[0].terms["queue"]

    assert queue_s(0.0) == pytest.approx(0.120)
    assert queue_s(0.05) == pytest.approx(0.120 - 0.060 + 0.0101)  # the one looked with was given up: taken for the oldest
    for booking in queued:
        booking.first_token(0.1)
    assert queue_s(0.2) == 0.0


def test_of_two_idle_holders_the_longer_hit_wins_and_a_queue_turns_it(build) -> None:
    """900 tokens: 640 held at a cost 36 ms, 320 held at b 68 ms; a prompt of 300 waiting at a makes it 76."""
    scheduler = build.scheduler([build.endpoint("a", slot=0), build.endpoint("b", slot=1)], "conductor")
    held = {0: 10, 1: 5}
    free = scheduler.place([build.ask(900, hits=build.Hits(held))], 0.0)[0]
    assert free.placement.decode.id == "a"
    free.first_token(0.1)
    scheduler.place([build.ask(300, excluded=frozenset({"b"}))], 1.0)
    turned = scheduler.place([build.ask(900, hits=build.Hits(held), explain=True)], 1.0)[0]
    assert turned.placement.decode.id == "b"
    assert {one.decode: one.cost for one in turned.placement.candidates} == pytest.approx({"a": 0.076, "b": 0.068})


def test_a_dedicated_prefill_endpoint_pays_the_hand_over_and_the_least_step_decodes(build) -> None:
    """900 tokens of KV at 1 µs; of two decode endpoints the one without a stream."""
    endpoints = [build.endpoint("p", Role.PREFILL), build.endpoint("x", Role.DECODE), build.endpoint("y", Role.DECODE)]
    scheduler = build.scheduler(endpoints, "conductor")
    first = scheduler.place([build.ask(900, explain=True)], 0.0)[0]
    assert seen(first) == {"p": approx(0.0, 0.100, 0.0009)}
    assert first.placement.ttft_s == pytest.approx(0.1009)
    second = scheduler.place([build.ask(100, explain=True)], 0.0)[0]
    assert seen(second) == {"p": approx(0.100, 0.020, 0.0001)}
    assert {first.bind_decode(0.2).id, second.bind_decode(0.2).id} == {"x", "y"}


def test_foreign_prompts_count_as_one(build) -> None:
    """1,500 tokens that others placed, told twice a period apart: 110 + 60 ms."""
    scheduler = build.scheduler([build.endpoint("a")], "conductor")
    for now in (0.0, 2.0):
        scheduler.report("a", Load(running=0, waiting=9, prefill_tokens=1_500), now)
    booking = scheduler.place([build.ask(100, explain=True)], 2.0)[0]
    assert seen(booking) == {"a": approx(0.170, 0.020)}


def test_a_new_endpoint_in_an_old_row_begins_without_a_queue(build) -> None:
    """The worker came back under another epoch after all its requests ended."""
    scheduler = build.scheduler([build.endpoint("a")], "conductor")
    bookings = [scheduler.place([build.ask(900)], 0.0)[0] for _ in range(5)]
    for booking in bookings:
        booking.done(0.1)
    scheduler.set_endpoints([], 0.2)
    scheduler.set_endpoints([build.endpoint("b", epoch=2)], 0.3)
    booking = scheduler.place([build.ask(100, explain=True)], 0.3)[0]
    assert seen(booking) == {"b": approx(own=0.020)}


def test_its_memory_is_bounded_by_what_waits(build) -> None:
    """A thousand requests, one after the other: one prompt is remembered."""
    policy = policy_named("conductor")
    scheduler = build.scheduler([build.endpoint("a")], policy)
    for turn in range(1_000):
        booking = scheduler.place([build.ask()], float(turn))[0]
        booking.first_token(turn + 0.1)
        booking.done(turn + 0.2)
    assert sum(len(queue) for queue in policy._queues) == 1
