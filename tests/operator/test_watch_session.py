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


def test_a_bookmark_reaches_kopf_as_it_is() -> None:
    """Alone, and behind the bookmark of an event that came before."""
    kept = line("BOOKMARK", metadata={"resourceVersion": "12"})
    assert taken(kept) == ([], kept)
    events, left = taken(line("ADDED", **pod("5")) + kept)
    assert len(events) == 1 and left.endswith(kept) and left.count(b"\n") == 2


@pytest.mark.parametrize(
    "fault", [line("ERROR", code=410, message="too old"), line("ERROR", code=500), b'{"type": oops}\n', b"[]\n", b'{"type":"ADDED"}\n']
)
def test_whatever_fails_is_gone_to_kopf_and_ends_the_stream(fault: bytes) -> None:
    """What came before counts, what follows does not, and Kopf is told 410, the one error that it answers by listing anew."""
    events, left = taken(line("ADDED", **pod("5")) + fault + line("ADDED", **pod("6")))
    assert [raw["metadata"]["resourceVersion"] for _, raw in events] == ["5"]
    bookmark, gone = map(msgspec.json.decode, left.splitlines())
    assert bookmark["type"] == "BOOKMARK" and gone["type"] == "ERROR" and gone["object"]["code"] == 410
