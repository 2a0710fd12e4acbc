"""`random` and `power-of-two`: what is drawn, from what, and who wins among the drawn."""

from collections import Counter
from itertools import permutations

import pytest
from penstock_core.endpoint import Role
from penstock_router.baselines.chance import drawn


def test_random_takes_each_index_for_as_many_seeds() -> None:
    """40 seeds among 4."""
    assert Counter(drawn(seed, 4, 1) for seed in range(40)) == {(index,): 10 for index in range(4)}


def test_two_draws_are_two_different_indices_each_pair_as_often() -> None:
    """12 ordered pairs among 4, 120 seeds in a row."""
    assert Counter(drawn(seed, 4, 2) for seed in range(120)) == dict.fromkeys(permutations(range(4), 2), 10)


def test_of_one_there_is_one_to_draw() -> None:
    """Two choices among one endpoint are that endpoint."""
    assert drawn(4_000_000_000, 1, 2) == (0,)


def test_power_of_two_never_takes_the_busiest_and_random_does(build) -> None:
    """Three idle endpoints and a busy one: whoever is drawn with it has fewer requests."""
    seen = {}
    for policy in ("power-of-two", "random"):
        scheduler = build.scheduler([build.endpoint(name) for name in "abcd"], policy)
        others = frozenset("bcd")
        for _ in range(3):
            scheduler.place([build.ask(excluded=others)], 0.0)
        seen[policy] = Counter()
        for turn in range(200):
            booking = scheduler.place([build.ask()], float(turn))[0]
            seen[policy][booking.placement.decode.id] += 1
            booking.done(float(turn))
    assert set(seen["power-of-two"]) == {"b", "c", "d"}
    assert set(seen["random"]) == set("abcd")
    assert min(seen["random"].values()) > 25


def test_power_of_two_of_two_alternates_like_least_request(build) -> None:
    """With two endpoints both are always drawn: ten requests that stay are five each."""
    scheduler = build.scheduler([build.endpoint("a"), build.endpoint("b")], "power-of-two")
    placed = scheduler.place([build.ask() for _ in range(10)], 0.0)
    assert Counter(one.placement.decode.id for one in placed) == {"a": 5, "b": 5}


@pytest.mark.parametrize("policy", ["random", "power-of-two"])
def test_all_endpoints_and_their_hits_are_explained(build, policy) -> None:
    """Also those that were not drawn; the hit of the placement is the chosen one's."""
    scheduler = build.scheduler([build.endpoint(name, slot=slot) for slot, name in enumerate("abc")], policy)
    for turn in range(12):
        ask = build.ask(1_000, hits=build.Hits({0: 3, 1: 5, 2: 7}), explain=True)
        placement = scheduler.place([ask], float(turn))[0].placement
        hits = {one.decode: one.hit_tokens for one in placement.candidates}
        assert hits == {"a": 192, "b": 320, "c": 448}
        assert placement.hit_tokens == hits[placement.decode.id]
        assert placement.ttft_s is None


def test_power_of_two_binds_the_decode_endpoint_with_fewer_requests(build) -> None:
    """Two decode endpoints: both are drawn, so four streams are two each."""
    endpoints = [build.endpoint("p", Role.PREFILL), build.endpoint("x", Role.DECODE), build.endpoint("y", Role.DECODE)]
    scheduler = build.scheduler(endpoints, "power-of-two")
    placed = scheduler.place([build.ask() for _ in range(4)], 0.0)
    assert Counter(one.bind_decode(0.1).id for one in placed) == {"x": 2, "y": 2}
