"""The text of an answer, read back from what was sent to the client, so that the next turn's prefix is known.

`kv_follow` calls it after the answer, off the event loop. It knows OpenAI's answer forms and nothing else.
"""

from collections.abc import Sequence
from typing import Any

import msgspec


class _Message(msgspec.Struct):
    content: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []


_decode = msgspec.json.Decoder(_Answer).decode


def answer_text(pieces: Sequence[bytes], *, streamed: bool) -> str | None:
    """The text of a whole answer with one choice; None for several choices, tool calls, an answer cut short, or another form."""
    whole = b"".join(pieces)
    events = [event[6:] for event in whole.split(b"\n\n") if event.startswith(b"data: {")] if streamed else [whole]
    texts: list[str] = []
    finished = False
    try:
        for event in events:
            for choice in _decode(event).choices:
                message = choice.delta or choice.message
                if choice.index or (message is not None and message.tool_calls is not None):
                    return None
                text = choice.text if message is None else message.content
                if text:
                    texts.append(text)
                finished = finished or choice.finish_reason is not None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return "".join(texts) if finished else None
