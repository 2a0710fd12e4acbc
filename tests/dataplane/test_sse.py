"""The splitter of server-sent events."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_dataplane.sse import EventTooLarge, SseSplitter

lines = st.lists(st.sampled_from([b"data: x", b"", b":c", b"data: {}", b"id: 1"]), max_size=12)


@given(lines, st.sampled_from([b"\n", b"\r\n"]), st.lists(st.integers(0, 200), max_size=12))
def test_events_do_not_depend_on_where_the_network_cut(parts: list[bytes], end: bytes, cuts: list[int]) -> None:
    """Any cutting of a stream yields the events of the uncut stream, and no byte is lost."""
    stream = b"".join(part + end for part in parts)
    whole = SseSplitter()
    expected = whole.feed(stream)
    splitter = SseSplitter()
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    events = [event for start, stop in itertools.pairwise(edges) for event in splitter.feed(stream[start:stop])]
    assert events == expected
    assert splitter.carry == whole.carry
    assert b"".join(events) + splitter.carry == stream


@given(st.binary(max_size=200))
def test_any_bytes_pass_through_whole(stream: bytes) -> None:
    """Garbage is carried or cut at empty lines, never changed."""
    splitter = SseSplitter()
    events = [event for index in range(len(stream)) for event in splitter.feed(stream[index : index + 1])]
    assert b"".join(events) + splitter.carry == stream
    assert events == SseSplitter().feed(stream)
    assert all(event.endswith((b"\n\n", b"\n\r\n")) for event in events)


def test_a_read_that_is_one_event_is_passed_on_uncopied() -> None:
    """The fast path hands the very object through."""
    event = b'data: {"a":1}\n\n'
    (got,) = SseSplitter().feed(event)
    assert got is event


def test_a_read_of_several_events_is_split() -> None:
    """Two events in one read come out as two."""
    assert SseSplitter().feed(b"data: 1\n\ndata: 2\r\n\r\ndata") == [b"data: 1\n\n", b"data: 2\r\n\r\n"]


def test_an_event_without_end_is_refused_at_the_limit() -> None:
    """The carry cannot grow beyond its bound."""
    splitter = SseSplitter(max_event_bytes=100)
    splitter.feed(b"x" * 100)
    with pytest.raises(EventTooLarge, match="100"):
        splitter.feed(b"x")
