"""Who may be chosen, by every policy; order within a turn; pairs, fallback and binding of the decode side."""

from collections import Counter
from random import Random

import pytest
from penstock_core.endpoint import Load, Role
from penstock_core.slo import Slo
from penstock_router import columns as col
from penstock_router.policies import POLICIES
from penstock_router.scheduling import Options, Scheduler

pytestmark = pytest.mark.usefixtures("each_kernel")
every_policy = pytest.mark.parametrize("policy", POLICIES)


def ids(bookings):
    return [one.placement.decode.id if one.placement.decode else one.placement.prefill.id for one in bookings]


@every_policy
def test_only_endpoints_that_qualify_are_chosen(build, policy):
    """Excluded, draining (by registry or report), without the capability or the adapter: none of them ever."""
    endpoints = [
        build.endpoint("good", adapters=("lora",)),
        build.endpoint("excluded", adapters=("lora",)),
        build.endpoint("draining", adapters=("lora",), draining=True),
        build.endpoint("told", adapters=("lora",)),
        build.endpoint("mute", adapters=("lora",), capabilities=("embeddings",)),
        build.endpoint("bare"),
    ]
    scheduler = build.scheduler(endpoints, policy)
    scheduler.report("told", Load(draining=True), 0.0)
    for turn in range(20):
        asks = [build.ask(adapter="lora", excluded=frozenset({"excluded"})) for _ in range(3)]
        placed = scheduler.place(asks, float(turn))
        assert set(ids(placed)) == {"good"}
        for booking in placed:
            booking.done(float(turn))
    scheduler.report("told", Load(), 30.0)
    assert set(ids(scheduler.place([build.ask(adapter="lora") for _ in range(12)], 30.0))) == {"good", "excluded", "told"}


@every_policy
def test_no_candidate_is_none(build, policy):
    """An unknown adapter, everybody excluded, or no endpoint at all."""
    scheduler = build.scheduler([build.endpoint("a")], policy)
    assert scheduler.place([build.ask(adapter="x"), build.ask(excluded=frozenset({"a"}))], 0.0) == [None, None]
    scheduler.set_endpoints([], 1.0)
    assert scheduler.place([build.ask()], 1.0) == [None]


@pytest.mark.parametrize("policy", ["target-misses", "least-request", "prefix-affinity"])
def test_exact_ties_are_random_and_even(build, policy):
    """Four idle equals, 400 placements each released at once: each gets its share."""
    scheduler = build.scheduler([build.endpoint(name) for name in "abcd"], policy)
    seen = Counter()
    for turn in range(400):
        booking = scheduler.place([build.ask()], float(turn))[0]
        seen[booking.placement.decode.id] += 1
        booking.done(float(turn))
    assert set(seen) == set("abcd")
    assert min(seen.values()) > 60


def test_a_turn_is_ordered_longest_prompt_first_where_workers_also_decode(build):
    """Three prompts, two workers: the two longest get a worker each, the short one joins the less loaded."""
    scheduler = build.scheduler([build.endpoint("a"), build.endpoint("b")])
    asks = [build.ask(100), build.ask(900), build.ask(800)]
    assert list(scheduler.order(asks)) == [1, 2, 0]
    long, middle, short = scheduler.place([asks[at] for at in scheduler.order(asks)], 0.0)
    assert [one.placement.ttft_s for one in (long, middle, short)] == pytest.approx([0.100, 0.090, 0.100])
    assert short.placement.decode.id == middle.placement.decode.id != long.placement.decode.id


def test_a_dedicated_prefill_pool_takes_the_shortest_first_but_for_those_that_cannot_wait(build):
    """Alone 110 ms and 100 ms a thousand tokens; the hand-over 1 ms a thousand. The fourth ask misses its target anyhow."""
    scheduler = build.scheduler([build.endpoint("p", Role.PREFILL, slot=1), build.endpoint("d", Role.DECODE)])
    tight, late = Slo(ttft_s=0.13), Slo(ttft_s=0.05)
    asks = [build.ask(700), build.ask(300), build.ask(1_000, slo=tight), build.ask(900, slo=late)]
    assert list(scheduler.order(asks)) == [2, 1, 0, 3]
    cached = build.ask(700, hits=build.Hits({1: 10}))  # 60 tokens are left
    assert list(scheduler.order([asks[1], cached])) == [1, 0]
    assert list(scheduler.order([asks[0], build.ask(1_000, slo=Slo(ttft_s=0.15), waited_s=0.02)])) == [1, 0]


def test_a_turn_is_left_as_it_came_where_that_is_asked_for(build):
    """The calibration replays a system that places in order of arrival."""
    scheduler = Scheduler("target-misses", rng=Random(1), options=Options(turn_order=False))
    scheduler.set_endpoints([build.endpoint("a")], 0.0)
    assert list(scheduler.order([build.ask(100), build.ask(900)])) == [0, 1]


def test_a_hit_is_worth_more_where_many_streams_would_stand_still(build):
    """256 cached tokens lie where 600 others wait: an idle fleet does without them, one full of streams waits for them."""
    for streams, follows_hit in ((0, False), (60, True)):
        scheduler = build.scheduler([build.endpoint("a", slot=0), build.endpoint("b", slot=1)])
        scheduler.beliefs.rows[:2, col.STREAMS] = streams
        slo = Slo(ttft_s=10.0, itl_s=0.2)
        busy = ids(scheduler.place([build.ask(600, slo=slo)], 0.0))[0]
        hits = build.Hits({"ab".index(busy): 4})
        taken = ids(scheduler.place([build.ask(500, hits=hits, max_tokens=20, slo=slo)], 0.0))[0]
        assert (taken == busy) == follows_hit


def test_a_prompt_is_kept_out_of_a_pass_that_must_not_become_longer(build):
    """900 tokens fit their target by 3 ms: 90 more in the same pass would miss it, so they go to the busier worker."""
    scheduler = build.scheduler([build.endpoint("a"), build.endpoint("b")])
    tight = scheduler.place([build.ask(900, slo=Slo(ttft_s=0.103))], 0.0)[0]
    scheduler.beliefs.rows[:2, col.SLIP_S] = 0.002
    other = scheduler.place([build.ask(950, slo=Slo(ttft_s=10.0))], 0.0)[0]
    assert other.placement.decode.id != tight.placement.decode.id
    third = scheduler.place([build.ask(40, slo=Slo(ttft_s=10.0))], 0.0)[0]
    assert third.placement.decode.id == other.placement.decode.id


@every_policy
def test_dedicated_pools_always_divide_unless_told_not_to(build, policy):
    """P/D placements have a prefill endpoint and no decode endpoint yet; `undivided` ones have a decode endpoint only."""
    scheduler = build.scheduler([build.endpoint("p", Role.PREFILL), build.endpoint("d", Role.DECODE)], policy)
    divided = scheduler.place([build.ask()], 0.0)[0]
    assert (divided.placement.prefill.id, divided.placement.decode) == ("p", None)
    divided.prefilled(0.1)
    assert divided.bind_decode(0.1).id == divided.placement.decode.id == "d"
    whole = scheduler.place([build.ask(undivided=True)], 0.2)[0]
    assert (whole.placement.prefill, whole.placement.decode.id) == (None, "d")


@every_policy
def test_without_a_live_prefill_endpoint_decode_endpoints_prefill(build, policy):
    """A draining prefill pool: the request goes undivided to the decode endpoint, and says so."""
    scheduler = build.scheduler([build.endpoint("p", Role.PREFILL, draining=True), build.endpoint("d", Role.DECODE)], policy)
    placement = scheduler.place([build.ask()], 0.0)[0].placement
    assert (placement.prefill, placement.decode.id, placement.reason) == (None, "d", "prefill-fallback")


@every_policy
@pytest.mark.parametrize("other", [{"kv_generation": "new"}, {"connector": "mooncake"}])
def test_only_equal_generation_and_connector_are_paired(build, policy, other):
    """p-old never meets d-new; a prefill endpoint without any partner gets nothing."""
    old = [build.endpoint("p-old", Role.PREFILL), build.endpoint("d-old", Role.DECODE)]
    new = [build.endpoint("d-new", Role.DECODE, **other), build.endpoint("p-none", Role.PREFILL, connector="none")]
    scheduler = build.scheduler(old + new, policy)
    for turn in range(12):
        booking = scheduler.place([build.ask()], float(turn))[0]
        assert booking.placement.prefill.id == "p-old"
        assert booking.bind_decode(float(turn)).id == "d-old"
    assert booking.bind_decode(20.0, frozenset({"d-old"})) is None
    assert booking.placement.decode is None


def test_decode_goes_to_the_least_step_time_with_ties_to_fewest_tokens(build):
    """Steps grow with streams here, not with context: the emptier one first, then the one with the shorter prompts."""
    scheduler = build.scheduler([build.endpoint("p", Role.PREFILL), build.endpoint("x", Role.DECODE), build.endpoint("y", Role.DECODE)])
    asks = [build.ask(tokens) for tokens in (900, 100, 50, 50)]
    placed = scheduler.place(asks, 0.0)
    bound = [one.bind_decode(0.1).id for one in placed]
    first, second = bound[:2]
    assert {first, second} == {"x", "y"}
    assert bound[2:] == [second, first]  # 100 < 900 tokens at one stream each; then the one with one stream


def test_decode_goes_where_the_prompt_is_held_until_the_step_costs_more(build):
    """A holder is sent only the rest: it wins among equals, and loses where its step takes more of its target than that saves of TTFT's."""
    endpoints = [build.endpoint("p", Role.PREFILL, slot=0), *(build.endpoint(f"d{i}", Role.DECODE, slot=1 + i) for i in range(4))]
    scheduler = build.scheduler(endpoints)
    asks = [build.ask(900, tokens_per_chunk=50.0, hits=build.Hits({3: 15})) for _ in range(8)]
    bound = [one.bind_decode(0.1).id for one in scheduler.place(asks, 0.0)]
    assert bound[0] == "d2"
    assert {"d0", "d1", "d3"} <= set(bound)


def test_a_failed_prefill_is_done_by_the_decode_endpoint(build):
    """After `prefill_failed` the bound endpoint has the prompt booked; it releases everything in the end."""
    scheduler = build.scheduler([build.endpoint("p", Role.PREFILL), build.endpoint("d", Role.DECODE)])
    booking = scheduler.place([build.ask(600)], 0.0)[0]
    booking.prefill_failed(0.05)
    assert booking.bind_decode(0.05).id == "d"
    assert (booking.placement.reason, booking.placement.prefill) == ("prefill-fallback", None)
    assert build.counts(scheduler)["BOOKED"] == 600
    booking.first_token(0.2)
    booking.done(0.3, 2)
    assert set(build.counts(scheduler).values()) == {0.0}


def test_a_mixed_pool_weighs_pairs_against_wholes(build):
    """A busy `both` worker loses to the idle pair; an idle one wins, because a pair adds transfer and a step."""
    endpoints = [build.endpoint("b"), build.endpoint("p", Role.PREFILL), build.endpoint("d", Role.DECODE)]
    scheduler = build.scheduler(endpoints)
    asks = [build.ask(900, explain=True)]
    first, second = scheduler.place(asks, 0.0)[0], scheduler.place(asks, 0.001)[0]
    assert (first.placement.decode.id, first.placement.prefill) == ("b", None)
    assert (second.placement.decode, second.placement.prefill.id) == (None, "p")
    # The pair by hand: 10 + 90 ms, 0.9 ms of transfer, a step of 21 ms.
    assert second.placement.ttft_s == pytest.approx(0.100 + 0.0009 + 0.021)
    assert {(one.prefill, one.decode) for one in second.placement.candidates} == {(None, "b"), ("p", "d"), ("b", "d")}


def test_a_shortlist_keeps_the_best_hit_and_the_idle_among_many(build):
    """40 prefill and 40 decode endpoints beside a busy `both`: at most 16 prefill sides are paired, the best hit among them."""
    endpoints = [build.endpoint("b", slot=0)]
    endpoints += [build.endpoint(f"p{i}", Role.PREFILL, slot=1 + i) for i in range(40)]
    endpoints += [build.endpoint(f"d{i}", Role.DECODE, slot=41 + i) for i in range(40)]
    scheduler = build.scheduler(endpoints)
    for _ in range(3):
        scheduler.place([build.ask(9_000, excluded=frozenset(one.id for one in endpoints[1:]))], 0.0)
    busy = frozenset(one.id for one in endpoints if one.id != "p37")
    scheduler.place([build.ask(50, excluded=busy - {"d0"})], 0.0)  # what waits there would keep it off a list by waiting alone
    ask = build.ask(900, tokens_per_chunk=50.0, hits=build.Hits({38: 15, 3: 2}), explain=True)
    placement = scheduler.place([ask], 0.001)[0].placement
    assert placement.prefill.id == "p37"
    assert placement.hit_tokens == 750
    paired = {one.prefill for one in placement.candidates if one.prefill}
    assert len(paired) == 16
    assert {"p37", "p2"} <= paired


def test_pairs_in_a_mixed_pool_share_a_generation(build):
    """Beside a busy `both`, the idle prefill endpoint is paired with the decode endpoint of its generation only."""
    endpoints = [
        build.endpoint("b"),
        build.endpoint("p", Role.PREFILL, kv_generation="new"),
        build.endpoint("d-old", Role.DECODE),
        build.endpoint("d-new", Role.DECODE, kv_generation="new"),
    ]
    scheduler = build.scheduler(endpoints)
    scheduler.place([build.ask(900)], 0.0)
    candidates = scheduler.place([build.ask(900, explain=True)], 0.001)[0].placement.candidates
    assert {(one.prefill, one.decode) for one in candidates if one.prefill} == {("p", "d-new"), ("b", "d-old")}


def test_endpoints_by_hand_take_hits_by_id(build):
    """Without index slots the caller's own estimate by endpoint id counts."""
    scheduler = build.scheduler([build.endpoint(name) for name in "abc"])
    ask = build.ask(640, hits_by_id={"b": 8, "unknown": 10}, explain=True)
    placement = scheduler.place([ask], 0.0)[0].placement
    assert (placement.decode.id, placement.hit_tokens) == ("b", 512)
    assert {one.decode: one.hit_tokens for one in placement.candidates} == {"a": 0, "b": 512, "c": 0}
    assert build.counts(scheduler)["HELD_CHUNKS"] == 0.0


def test_an_endpoint_without_kv_headroom_is_taken_only_when_none_has_any(build):
    """1,000-token caches: the second prompt goes to the other; the third, which fits nowhere, is still placed."""
    scheduler = build.scheduler([build.endpoint(name, kv_total_tokens=1_000) for name in "ab"])
    first, second, third = (scheduler.place([build.ask(600, max_tokens=50)], 0.001 * i)[0] for i in range(3))
    assert first.placement.decode.id != second.placement.decode.id
    assert third is not None
    slow = build.scheduler([build.endpoint("full", kv_total_tokens=5_000), build.endpoint("busy")])
    slow.report("full", Load(kv_used_tokens=4_800, kv_total_tokens=5_000), 0.0)
    slow.place([build.ask(900, excluded=frozenset({"full"}))], 0.0)
    assert slow.place([build.ask(300)], 0.01)[0].placement.decode.id == "busy"


def test_round_robin_takes_turns(build):
    """Three endpoints, seven requests: 3, 2, 2."""
    scheduler = build.scheduler([build.endpoint(name) for name in "abc"], "round-robin")
    assert sorted(Counter(ids(scheduler.place([build.ask() for _ in range(7)], 0.0))).values()) == [2, 2, 3]


def test_prefix_affinity_by_the_rule_of_aibrix(build):
    """The hit while running ≤ mean + deviation, else the fewest running; hits count for nothing once counts differ by 9."""
    names = "abcd"
    scheduler = build.scheduler([build.endpoint(name, slot=i) for i, name in enumerate(names)], "prefix-affinity")

    def put(name, hit=None):
        """Place on `name` by excluding the others, or freely with a hit on endpoint number `hit`."""
        others = frozenset(names) - {name} if name else frozenset()
        hits = None if hit is None else build.Hits({hit: 5})
        return scheduler.place([build.ask(excluded=others, hits=hits)], 0.0)[0]

    for name in names * 2:
        put(name)
    on_hit = put(None, hit=0)  # 2 2 2 2
    assert (on_hit.placement.decode.id, on_hit.placement.hit_tokens, on_hit.placement.reason) == ("a", 320, "prefix-affinity")
    elsewhere = put(None, hit=0)  # 3 2 2 2: mean 2.25, deviation 0.43
    assert elsewhere.placement.decode.id in "bcd"
    elsewhere.done(0.0)
    on_hit.done(0.0)
    for _ in range(8):
        put("d")  # 2 2 2 10: differ by 8
    for _ in range(20):
        booking = put(None, hit=1)
        assert booking.placement.decode.id == "b"
        booking.done(0.0)
    put("d")  # differ by 9
    seen = set()
    for _ in range(40):
        booking = put(None, hit=1)
        seen.add(booking.placement.decode.id)
        booking.done(0.0)
    assert seen == {"a", "b", "c"}


def test_a_policy_is_named_or_refused(build):
    """The error says what is allowed."""
    with pytest.raises(ValueError, match="allowed: target-misses, round-robin"):
        build.scheduler([], "best")


def test_explanations_name_every_candidate_with_its_terms(build):
    """The terms sum to the cost; the chosen one has the least."""
    scheduler = build.scheduler([build.endpoint(name) for name in "abc"])
    scheduler.place([build.ask(700), build.ask(300)], 0.0)
    placement = scheduler.place([build.ask(500, explain=True, slo=Slo(ttft_s=0.08))], 0.01)[0].placement
    assert {one.decode for one in placement.candidates} == set("abc")
    for one in placement.candidates:
        assert set(one.terms) == {"ttft", "own_miss", "others_miss", "others_wait", "itl_miss", "work"}
        assert sum(one.terms.values()) == pytest.approx(one.cost)
        assert one.terms["ttft"] == pytest.approx(one.ttft_s / 0.08)
    assert min(placement.candidates, key=lambda one: one.cost).decode == placement.decode.id
    assert scheduler.place([build.ask()], 0.02)[0].placement.candidates == ()
