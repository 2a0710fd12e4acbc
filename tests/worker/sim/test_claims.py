"""Pinned prefills: claimed once, given back when the puller vanishes, freed when their time is over. Time is a number here."""

from penstock_worker.engines.sim.blocks import BlockStore
from penstock_worker.engines.sim.claims import Claims
from penstock_worker.engines.sim.link import Link


def _pinned() -> tuple[BlockStore, Claims, str]:
    store = BlockStore(4, 64)
    claims = Claims(store, 30.0)
    return store, claims, claims.add("r", store.allocate(3), 150, 1000.0)


def test_a_finished_claim_frees_its_blocks() -> None:
    """And cannot be claimed again."""
    store, claims, name = _pinned()
    assert (store.used, claims.unclaimed_tokens) == (3, 150)
    claim = claims.begin(name, 1001.0)
    assert claim is not None
    assert claims.begin(name, 1001.0) is None
    claims.finish(name)
    assert (store.used, claims.unclaimed_tokens, claims.begin(name, 1002.0)) == (0, 0, None)


def test_an_unclaimed_prefill_is_freed_when_its_time_is_over() -> None:
    """At its deadline, counted, and no longer to be had."""
    store, claims, name = _pinned()
    assert claims.next_deadline_s() == 1030.0
    assert claims.expire(1029.9) == 0
    assert store.used == 3
    assert claims.begin(name, 1030.0) is None
    assert claims.expire(1030.0) == 1
    assert (store.used, claims.expired_total, claims.next_deadline_s()) == (0, 1, None)


def test_a_claim_given_up_is_there_for_another_until_its_deadline() -> None:
    """A pull under way is not expired under its puller's hands."""
    store, claims, name = _pinned()
    assert claims.begin(name, 1001.0)
    assert claims.expire(1031.0) == 0
    claims.give_up(name)
    assert claims.begin(name, 1020.0)
    claims.give_up(name)
    assert claims.expire(1031.0) == 1
    assert store.used == 0


def test_one_request_prefilled_twice_makes_two_claims() -> None:
    """A retried prefill leg must not replace the first one's pins."""
    store, claims, name = _pinned()
    other = claims.add("r", store.allocate(1), 10, 1000.0)
    assert other != name
    claims.clear()
    assert (store.used, len(claims)) == (0, 0)


def test_pulls_share_the_link() -> None:
    """100 bytes a second: two at once take twice as long, and the rest is fast again once one is through."""
    link = Link(100.0)
    link.start("a", 1000, 0.0)
    assert link.left_s("a", 0.0) == 10.0
    link.start("b", 200, 5.0)  # a has 500 left: b is through at 9, a at 5 + 4 + 3
    assert link.left_s("b", 5.0) == 4.0
    assert link.left_s("a", 5.0) == 7.0
    assert link.left_s("b", 9.0) == 0.0
    assert link.left_s("a", 10.0) == 2.0
    assert link.left_s("a", 99.0) == 0.0


def test_a_pull_given_up_leaves_its_share_to_the_others() -> None:
    """From that moment on."""
    link = Link(100.0)
    link.start("a", 1000, 0.0)
    link.start("b", 1000, 0.0)
    assert link.left_s("a", 0.0) == 20.0
    link.drop("b", 4.0)
    assert link.left_s("a", 4.0) == 8.0
    link.drop("b", 4.0)


def test_an_idle_link_keeps_no_credit() -> None:
    """A pull after a pause takes its full time."""
    link = Link(100.0)
    link.start("a", 100, 0.0)
    assert link.left_s("a", 50.0) == 0.0
    link.start("b", 100, 60.0)
    assert link.left_s("b", 60.0) == 1.0
