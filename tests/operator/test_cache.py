"""The cache against what the API server really holds: late, repeated and lost events, listings in between."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_operator import names
from penstock_operator.cache import Cache
from penstock_operator.difference import kept
from penstock_operator.kinds import POD, WATCHED, ObjectKind

KINDS: tuple[ObjectKind, ...] = (POD,)
KEY = ("team", "llama")


def pod(name: str, uid: str, version: int, service: str = "llama") -> dict[str, Any]:
    labels = {names.SERVICE_LABEL: service} if service else {}
    return {"metadata": {"name": name, "namespace": "team", "uid": uid, "resourceVersion": str(version), "labels": labels}}


STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "delete", "list", "deliver", "lose", "relabel"]), st.sampled_from("abc"), st.integers(0, 8)),
    max_size=40,
)


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_after_a_listing_no_deleted_object_is_left(steps: list[tuple[str, str, int]]) -> None:
    """Events of each object arrive in order, but late, or never; a listing may arrive late as well. After a fresh one all is true."""
    cache = Cache(KINDS)
    truth: dict[str, dict[str, Any]] = {}
    queues: dict[str, list[tuple[str, dict[str, Any]]]] = {name: [] for name in "abc"}
    listings: list[tuple[list[dict[str, Any]], int]] = []
    version = 0
    for what, name, number in steps:
        version += 1
        if what in ("write", "relabel"):
            uid = truth[name]["metadata"]["uid"] if name in truth else f"uid-{version}"
            truth[name] = pod(name, uid, version, "other" if what == "relabel" else "llama")
            queues[name].append(("MODIFIED", truth[name]))
        elif what == "delete" and name in truth:
            gone = pod(name, truth.pop(name)["metadata"]["uid"], version)
            queues[name].append(("DELETED", gone))
        elif what == "list":
            listings.append((list(truth.values()), version))
            if number % 2:
                cache.replace(POD, *listings.pop(0))
        elif what == "deliver" and queues[name]:
            event, raw = queues[name].pop(0)
            (cache.remove if event == "DELETED" else cache.put)(POD, raw)
        elif what == "lose" and queues[name]:
            queues[name].pop(0)
    for items, at in listings:
        cache.replace(POD, items, at)
    cache.replace(POD, truth.values(), version)
    for name in "abc":
        for event, raw in queues[name]:
            (cache.remove if event == "DELETED" else cache.put)(POD, raw)
    for name in "abc":
        found = cache.get(POD, "team", name)
        assert (found and found["metadata"]["uid"]) == (truth[name]["metadata"]["uid"] if name in truth else None)
    ours = {name for name, raw in truth.items() if raw["metadata"]["labels"][names.SERVICE_LABEL] == "llama"}
    assert set(cache.owned(KEY, POD)) == ours


def test_a_listing_that_is_older_than_a_deletion_brings_nothing_back() -> None:
    """Listed at 5, deleted at 6, and the listing arrives last: gone stays gone; one made anew at 8 is another."""
    cache = Cache(KINDS)
    old = pod("a", "1", 4)
    cache.put(POD, old)
    cache.remove(POD, pod("a", "1", 6))
    assert cache.replace(POD, [old], 5) == set()
    assert cache.get(POD, "team", "a") is None
    cache.put(POD, pod("a", "2", 8))
    cache.replace(POD, [old], 7)
    found = cache.get(POD, "team", "a")
    assert found is not None and found["metadata"]["uid"] == "2"


def test_an_object_that_moves_concerns_both_services() -> None:
    """A Pod whose label is changed by hand is news for the service it leaves and for the one it comes to."""
    cache = Cache(KINDS)
    cache.replace(POD, [pod("a", "1", 1)], 1)
    assert cache.put(POD, pod("a", "1", 2, "other")) == {KEY, ("team", "other")}
    assert cache.put(POD, pod("a", "1", 2, "other")) == set(), "the same again is no news"


def test_it_is_synced_when_every_kind_has_been_listed() -> None:
    """Not before: a plan made on half of the objects would make what is there already."""
    cache = Cache(WATCHED)
    for kind in WATCHED:
        assert not cache.synced
        cache.replace(kind, [], 1)
    assert cache.synced


def test_what_is_not_needed_is_not_remembered() -> None:
    """A Pod's spec shrinks to its images, managed fields go."""
    raw = pod("a", "1", 2)
    raw["metadata"]["managedFields"] = [{"manager": "x"}]
    raw["spec"] = {"nodeName": "n", "containers": [{"name": "worker", "image": "penstock:1", "args": ["x"] * 100}]}
    found = kept(raw, POD)
    assert found["spec"] == {"containers": [{"name": "worker", "image": "penstock:1"}]}
    assert "managedFields" not in found["metadata"]
