"""Guessed caches of plain servers: found, bounded, lapsing, dropped. Time is arithmetic."""

from hypothesis import given
from hypothesis import strategies as st
from penstock_core.endpoint import Endpoint, Role, WorkerRecord
from penstock_core.profile import DEFAULT_PROFILE
from penstock_core.prompt import chunk_keys
from penstock_router.prefixes import GuessedCache


def endpoint(name):
    return Endpoint(
        WorkerRecord(
            id=name,
            url="http://x:1",
            role=Role.BOTH,
            pool="p",
            model="m",
            epoch=0,
            profile=DEFAULT_PROFILE,
            kv_total_tokens=1,
            block_tokens=1,
            max_model_tokens=1,
        )
    )


def prompt(text, chunk_bytes=4):
    return chunk_keys(text, b"", 1, chunk_bytes)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.binary(max_size=40)), max_size=12), st.binary(max_size=40))
def test_hits_are_the_longest_common_beginnings(placed, asked):
    """Against the definition: for each endpoint the most full chunks shared with any prompt placed there."""
    cache = GuessedCache(10**6, 100.0)
    for name, text in placed:
        if len(text) >= 4:
            cache.book(endpoint(name), prompt(text), 0.0)
    expected = {}
    for name, text in placed:
        shared = 0
        while text[: 4 * shared + 4] == asked[: 4 * shared + 4] and 4 * shared + 4 <= min(len(text), len(asked)):
            shared += 1
        expected[name] = max(shared, expected.get(name, 0))
    assert cache.find(prompt(asked))[1] == {name: n for name, n in expected.items() if n}


def test_the_oldest_tail_goes_first_when_the_capacity_is_full():
    """Two prompts of three chunks in a cache of four: of the older one the head is left."""
    cache = GuessedCache(4, 100.0)
    cache.book(endpoint("a"), prompt(b"aaaabbbbcccc"), 0.0)
    cache.book(endpoint("a"), prompt(b"xxxxyyyyzzzz"), 1.0)
    assert cache.find(prompt(b"xxxxyyyyzzzz"))[1] == {"a": 3}
    assert cache.find(prompt(b"aaaabbbbcccc"))[1] == {"a": 1}
    assert len(cache) == 4


def test_entries_lapse_and_endpoints_are_dropped():
    """What was placed too long ago is forgotten with the next placement there; a dead endpoint at once."""
    cache = GuessedCache(100, 10.0)
    for name in "ab":
        cache.book(endpoint(name), prompt(b"aaaabbbb"), 0.0)
    cache.book(endpoint("a"), prompt(b"cccc"), 10.0)
    assert cache.find(prompt(b"aaaabbbb"))[1] == {"b": 2}
    cache.drop("b")
    assert cache.find(prompt(b"aaaabbbb"))[1] == {} and len(cache) == 1
    cache.book(endpoint("c"), prompt(b"aaaa"), 10.0)
    assert cache.find(prompt(b"aaaa"))[1] == {"c": 1}


def test_a_repeated_prompt_keeps_its_entries_alive():
    """Booked again after a while, it lapses from then on."""
    cache = GuessedCache(100, 10.0)
    cache.book(endpoint("a"), prompt(b"aaaabbbb"), 0.0)
    cache.book(endpoint("a"), prompt(b"aaaabbbb"), 8.0)
    cache.book(endpoint("a"), prompt(b"cccc"), 12.0)
    assert cache.find(prompt(b"aaaabbbb"))[1] == {"a": 2}
