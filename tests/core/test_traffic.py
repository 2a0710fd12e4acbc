"""Windows of several routers and of successive intervals add up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_core.traffic import Ended, Window, joined, thinned
from window_strategies import content, windows


def window(since_s: float, until_s: float, arrival_s: list[float], waiting: int = 0) -> Window:
    """Every arrival asks for 100 tokens and has ended at once with one token."""
    many, at = len(arrival_s), np.array(arrival_s, np.float64)
    tokens, nothing = np.full(many, 100, np.int64), np.zeros(many, np.int64)
    ended = Ended(
        arrival_s=at,
        prompt_tokens=tokens,
        hit_tokens=nothing,
        output_tokens=nothing + 1,
        ttft_s=np.full(many, 0.1),
        tpot_s=np.full(many, np.nan),
        ok=np.ones(many, np.bool_),
    )
    return Window(
        since_s=since_s, until_s=until_s, arrival_s=at, prompt_tokens=tokens, ended=ended, arrivals=many, endings=many, waiting=waiting
    )


def test_windows_of_two_routers_add_up() -> None:
    """Arrivals in order of time, counts and waiting requests summed."""
    both = joined([window(0.0, 5.0, [1.0, 4.0], waiting=2), window(0.0, 5.0, [2.0, 3.0], waiting=1)])
    assert both.arrival_s.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert (both.arrivals, both.endings, both.waiting, len(both.ended.ok)) == (4, 4, 3, 4)


def test_successive_windows_add_up() -> None:
    """Who waited at the end of an earlier one does not wait twice."""
    both = joined([window(0.0, 5.0, [1.0], waiting=2), window(5.0, 10.0, [7.0], waiting=1)])
    assert (both.since_s, both.until_s, both.length_s, both.waiting) == (0.0, 10.0, 10.0, 1)


def test_no_window_is_not_an_empty_window() -> None:
    """Nothing known is no traffic of zero."""
    with pytest.raises(ValueError, match="1 or more"):
        joined([])


@given(windows(), st.integers(1, 12))
def test_a_thinned_window_is_a_part_of_it_with_all_its_counts(whole: Window, most: int) -> None:
    """At most so many rows, each of them of the whole, in order; one that is small enough stays as it is."""
    part = thinned(whole, most)
    assert len(part.arrival_s) == min(most, len(whole.arrival_s))
    assert len(part.ended.ok) == min(most, len(whole.ended.ok))
    assert set(zip(part.arrival_s.tolist(), part.prompt_tokens.tolist(), strict=True)) <= set(
        zip(whole.arrival_s.tolist(), whole.prompt_tokens.tolist(), strict=True)
    )
    assert (np.diff(part.arrival_s) >= 0).all()
    assert (part.arrivals, part.endings, part.shed, part.waiting) == (whole.arrivals, whole.endings, whole.shed, whole.waiting)
    assert content(thinned(whole, 100)) == content(whole)


@given(windows(), windows(), windows())
def test_windows_may_be_joined_in_any_order_and_in_any_groups(a: Window, b: Window, c: Window) -> None:
    """Nothing depends on which router's window is read first, or on what was added up before."""
    whole = content(joined([a, b, c]))
    assert content(joined([c, a, b])) == whole
    assert content(joined([joined([a, b]), c])) == whole
    assert content(joined([a, joined([b, c])])) == whole
    assert content(joined([a])) == content(joined([joined([a])]))
