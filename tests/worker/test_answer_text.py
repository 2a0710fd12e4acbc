"""The text of an answer, read back from its bytes as they were sent."""

import msgspec
import pytest
from penstock_worker.answer_text import answer_text


def event(**choice):
    return b"data: " + msgspec.json.encode({"choices": [{"index": 0, **choice}]}) + b"\n\n"


WHOLE = [
    event(delta={"role": "assistant", "content": ""}),
    event(delta={"content": "Hé"}) + event(delta={"content": " you\n\n"}),
    event(delta={}, finish_reason="stop"),
    b'data: {"choices":[],"usage":{}}\n\ndata: [DONE]\n\n',
]


def test_streamed_text_is_joined_wherever_it_was_cut():
    """Deltas in any pieces give the text; usage and end marks add nothing."""
    whole = b"".join(WHOLE)
    for size in (1, 7, 64, len(whole)):
        assert answer_text([whole[at : at + size] for at in range(0, len(whole), size)], streamed=True) == "Hé you\n\n"


def test_whole_answers_and_completions_are_read():
    """A JSON body and the completions form give their text."""
    body = {"choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}]}
    assert answer_text([msgspec.json.encode(body)], streamed=False) == "hello"
    assert answer_text([event(text="a") + event(text="b", finish_reason="length")], streamed=True) == "ab"


@pytest.mark.parametrize(
    "pieces",
    [
        WHOLE[:2],
        [*WHOLE[:3], event(delta={"tool_calls": []})],
        [b"".join(WHOLE).replace(b'"index":0', b'"index":1')],
        [b"data: {broken\n\n"],
        [],
        [b"event: error\n", b'data: {"error":{}}\n\n'],
    ],
)
def test_what_cannot_be_followed_gives_none(pieces):
    """An answer cut short, several choices, tool calls, garbage and errors have no text to go on with."""
    assert answer_text(pieces, streamed=True) is None
