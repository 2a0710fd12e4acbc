"""What is taken out of a watch's stream, and what Kopf is left with."""

import msgspec
import pytest
from penstock_operator.watch_session import taken


def line(type_: str, **said: object) -> bytes:
    return msgspec.json.encode({"type": type_, "object": said}) + b"\n"


def pod(version: str) -> dict[str, object]:
    return {"metadata": {"name": "p", "uid": "u", "resourceVersion": version}}


def test_events_go_to_us_and_their_last_version_to_kopf() -> None:
    """Three events leave one bookmark of the last one's version, from which Kopf would resume."""
    events, left = taken(line("ADDED", **pod("5")) + line("MODIFIED", **pod("7")) + line("DELETED", **pod("9")))
    assert [(type_, raw["metadata"]["resourceVersion"]) for type_, raw in events] == [("ADDED", "5"), ("MODIFIED", "7"), ("DELETED", "9")]
    assert msgspec.json.decode(left) == {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}
    assert left.endswith(b"\n")


@pytest.mark.parametrize("kept", [line("BOOKMARK", metadata={"resourceVersion": "12"}), line("ERROR", code=410, message="too old")])
def test_what_is_no_event_reaches_kopf_as_it_is(kept: bytes) -> None:
    """Bookmarks and errors alone, and behind the bookmark of an event that came before."""
    assert taken(kept) == ([], kept)
    events, left = taken(line("ADDED", **pod("5")) + kept)
    assert len(events) == 1 and left.endswith(kept) and left.count(b"\n") == 2
