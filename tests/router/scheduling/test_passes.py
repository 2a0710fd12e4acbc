"""Bookings per pass, worked by hand: 10 ms + 0.1 ms a prompt token, 20 ms + 1 ms a stream per step, 1,000 tokens a pass."""

import pytest
from penstock_router import columns as col
from penstock_router.scheduling import Scheduler

pytestmark = pytest.mark.usefixtures("each_kernel")


def state(scheduler: Scheduler, row: int = 0) -> tuple[float, float, float]:
    """(U, D, X)."""
    cells = scheduler.beliefs.rows[row]
    return cells[col.BOOKED], cells[col.COMPUTED], cells[col.PASSING]


def test_an_idle_worker_prefills_at_once(build):
    """500 tokens on an idle worker: 10 + 50 ms, and a first step of 21 ms for one stream."""
    scheduler = build.scheduler([build.endpoint("a")])
    placement = scheduler.place([build.ask(500)], 0.0)[0].placement
    assert placement.ttft_s == pytest.approx(0.060)
    assert placement.itl_s == pytest.approx(0.021)
    assert placement.reason == "only-candidate"


def test_placements_of_one_instant_share_the_pass(build):
    """The second of an instant joins the forming pass: 10 + 0.1 · (500 + 300) = 90 ms."""
    scheduler = build.scheduler([build.endpoint("a")])
    scheduler.place([build.ask(500)], 0.0)
    assert scheduler.place([build.ask(300)], 0.0)[0].placement.ttft_s == pytest.approx(0.090)


def test_a_later_placement_waits_for_the_running_pass(build):
    """At 20 ms the pass of 500 tokens (60 ms) has 40 ms left; then a pass of 300 takes 40 ms."""
    scheduler = build.scheduler([build.endpoint("a")])
    scheduler.place([build.ask(500)], 0.0)
    assert scheduler.place([build.ask(300)], 0.020)[0].placement.ttft_s == pytest.approx(0.080)
    assert state(scheduler) == (800, 0, 500)


def test_a_long_prompt_takes_several_passes(build):
    """2,500 tokens: two passes of 110 ms and one of 500 tokens, 60 ms."""
    scheduler = build.scheduler([build.endpoint("a")])
    assert scheduler.place([build.ask(2_500)], 0.0)[0].placement.ttft_s == pytest.approx(0.280)


def test_as_time_passes_full_passes_are_computed(build):
    """At 150 ms the first pass of 2,500 tokens is over and the second has 70 ms left; 500 + 200 tokens then take 80 ms."""
    scheduler = build.scheduler([build.endpoint("a")])
    scheduler.place([build.ask(2_500)], 0.0)
    placement = scheduler.place([build.ask(200)], 0.150)[0].placement
    assert state(scheduler) == (2_700, 1_000, 1_000)
    assert placement.ttft_s == pytest.approx(0.070 + 0.080)


def test_a_first_token_turns_a_prompt_into_a_stream(build):
    """After the first token nothing is booked, one stream decodes with 500 + 1 tokens of context."""
    scheduler = build.scheduler([build.endpoint("a")])
    booking = scheduler.place([build.ask(500)], 0.0)[0]
    booking.first_token(0.060)
    row = scheduler.beliefs.rows[0]
    assert state(scheduler) == (0, 0, 0)
    assert (row[col.STREAMS], row[col.CONTEXT]) == (1, 501)
    booking.token(0.081)
    assert row[col.CONTEXT] == 502
    booking.token(0.144, 3.0)
    assert row[col.CONTEXT] == 505


def test_beside_streams_the_step_in_progress_is_waited_for_and_every_pass_decodes(build):
    """Two streams: half a step of 22 ms, then 1,500 tokens in passes of 998 and 502: 10 + 99.8 + 22 + 10 + 50.2 + 22 ms."""
    scheduler = build.scheduler([build.endpoint("a")])
    for _ in range(2):
        scheduler.place([build.ask(100)], 0.0)[0].first_token(1.0)
    placement = scheduler.place([build.ask(1_500)], 2.0)[0].placement
    assert placement.ttft_s == pytest.approx(0.011 + 0.010 + 0.0998 + 0.022 + 0.010 + 0.0502 + 0.022)
    assert placement.itl_s == pytest.approx(0.023)


def test_an_engine_ahead_of_the_belief_moves_it_on(build):
    """A first token 20 ms early ends the believed pass, and the rest forms its pass now."""
    scheduler = build.scheduler([build.endpoint("a")])
    first, _second = (scheduler.place([build.ask(tokens)], now)[0] for tokens, now in ((500, 0.0), (300, 0.010)))
    first.first_token(0.040)
    assert state(scheduler) == (300, 0, 0)
    # One stream decodes now: a step of 21 ms in each pass, which forms at this very instant with 300 + 100 tokens.
    assert scheduler.place([build.ask(100)], 0.040)[0].placement.ttft_s == pytest.approx(0.010 + 0.040 + 0.021)


def test_an_engine_behind_the_belief_pulls_it_back(build):
    """Belief has two more passes computed when the first token of the first comes: only the rest of one pass can lie after it."""
    scheduler = build.scheduler([build.endpoint("a")])
    first = scheduler.place([build.ask(1_000)], 0.0)[0]
    for tokens, now in ((1_000, 0.010), (1_000, 0.020)):
        scheduler.place([build.ask(tokens)], now)
    scheduler.place([build.ask(600)], 0.345)  # passes end at 110, 220, 330 ms: the belief has all 3,000 computed
    assert state(scheduler)[1] == 3_000
    first.first_token(0.350)
    booked, computed, _ = state(scheduler)
    assert (booked, computed) == (2_600, 1_000)


def test_a_first_token_resets_the_start_of_the_running_pass(build):
    """The pass before ended 10 ms later than believed, so the running one began 10 ms later."""
    scheduler = build.scheduler([build.endpoint("a")])
    first = scheduler.place([build.ask(500)], 0.0)[0]
    scheduler.place([build.ask(300)], 0.010)
    first.first_token(0.070)
    # At 75 ms: the pass of 300 (40 ms + a step of 21) has 56 ms left; then 100 tokens take 20 + 21 ms.
    assert scheduler.place([build.ask(100)], 0.075)[0].placement.ttft_s == pytest.approx(0.056 + 0.041)


def test_hits_shorten_the_prefill_but_one_token_is_always_computed(build):
    """8 chunks of 50 tokens held: 100 of 500 are new; a prompt held whole still computes one."""
    scheduler = build.scheduler([build.endpoint("a", slot=9)])
    placement = scheduler.place([build.ask(500, tokens_per_chunk=50.0, hits=build.Hits({9: 8, 77: 3}))], 0.0)[0].placement
    assert (placement.hit_chunks, placement.hit_tokens) == (8, 400)
    assert placement.ttft_s == pytest.approx(0.020)
    again = scheduler.place([build.ask(500, tokens_per_chunk=50.0, hits=build.Hits({9: 10}))], 5.0)[0].placement
    assert again.hit_tokens == 499


def test_harm_to_a_stream_by_hand(build):
    """Lengths uniform on 1..100; at g = 10 without stall, 150 ms more at 10 ms of room need 16 tokens: (0.15 − 0.09) / 0.91."""
    scheduler = build.scheduler([build.endpoint("a")])
    slo = build.ask().slo.__class__(ttft_s=1.0, itl_s=0.032)
    booking = scheduler.place([build.ask(100, slo=slo)], 0.0)[0]
    booking.first_token(1.0)
    for step in range(1, 10):
        booking.token(1.0 + 0.022 * step)
    table = scheduler.lengths.model.table
    for k in range(table.shape[1]):
        table[col.SHORTER, k] = min(1.0, max(0.0, (k - 1) / 100))
    now = 1.0 + 0.022 * 9
    placement = scheduler.place([build.ask(1_190, slo=slo, explain=True)], now)[0].placement
    # Δ: 999 tokens in a first pass, 191 in a second: 10 + 99.9 + 21 + 10 + 19.1 + 21 = 181 ms → k = 19.1 → F(20)
    assert placement.candidates[0].terms["others_miss"] == pytest.approx((0.19 - 0.09) / 0.91)
    # 139 ms in two passes. A second is a share of the TTFT target, and one of what the one stream there takes: 256 tokens of 32 ms.
    assert placement.candidates[0].terms["work"] == pytest.approx(0.139 * (1.0 + 1.0 / (0.032 * 256)))


def test_joining_a_pass_costs_what_it_makes_others_wait_and_saves_its_constant_by_hand(build):
    """200 tokens wait (a fifth of a pass); 300 more make their pass 30 ms longer, not the 40 ms that they take alone."""
    scheduler = build.scheduler([build.endpoint("a")])
    slo = build.ask().slo.__class__(ttft_s=2.0, itl_s=1.0)
    scheduler.place([build.ask(200, slo=slo)], 0.0)
    terms = scheduler.place([build.ask(300, slo=slo, explain=True)], 0.0)[0].placement.candidates[0].terms
    assert terms["others_wait"] == pytest.approx(0.030 / 2.0)
    assert terms["work"] == pytest.approx(0.030 / 2.0)
    # The two are a pass of 60 ms by now; 600 of 1,000 more fit into it, and only that share makes them wait.
    terms = scheduler.place([build.ask(1_100, slo=slo, explain=True)], 0.0)[0].placement.candidates[0].terms
    assert terms["others_wait"] == pytest.approx(2 * 0.050 / 2.0)
    assert terms["work"] == pytest.approx((0.110 + 0.010) / 2.0)


def test_harm_to_a_prompt_that_still_waits_by_hand(build):
    """600 tokens wait; 1,000 more fill their pass up with 400, and the pass of 600 after it (70 ms) will stall that stream."""
    scheduler = build.scheduler([build.endpoint("a")])
    slo = build.ask().slo.__class__(ttft_s=1.0, itl_s=0.031)
    table = scheduler.lengths.model.table
    for k in range(table.shape[1]):
        table[col.SHORTER, k] = min(1.0, max(0.0, (k - 1) / 100))
    scheduler.place([build.ask(600, slo=slo)], 0.0)
    terms = scheduler.place([build.ask(1_000, slo=slo, explain=True)], 0.0)[0].placement.candidates[0].terms
    # Room is 31 − 21 ms: k = 1 + 70 / 10 = 8, and F(8) = 7 %.
    assert terms["others_miss"] == pytest.approx(0.07)
