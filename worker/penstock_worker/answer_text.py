"""The text of an answer, read back from what was sent to the client, so that the next turn's prefix is known.

`kv_follow` calls it after the answer, off the event loop. It knows OpenAI's answer forms and nothing else.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

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


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Counted(msgspec.Struct):
    usage: _Usage | None = None


class Counts(NamedTuple):
    """An engine's own count of one prompt; `cached_tokens` is None where it does not say."""

    prompt_tokens: int
    cached_tokens: int | None


_decode = msgspec.json.Decoder(_Answer).decode
_decode_counted = msgspec.json.Decoder(_Counted).decode
_COUNTED_PIECES = 3
"""Usage stands in the last piece but the end mark."""


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


def answer_counts(pieces: Sequence[bytes], *, streamed: bool) -> Counts | None:
    """What an answer's usage says of its prompt; None for an answer without usage."""
    whole = b"".join(pieces[-_COUNTED_PIECES:])
    events = [event[6:] for event in whole.split(b"\n\n") if event.startswith(b"data: {") and b'"usage"' in event] if streamed else [whole]
    for event in reversed(events):
        try:
            usage = _decode_counted(event).usage
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if usage is not None and usage.prompt_tokens:
            details = usage.prompt_tokens_details
            return Counts(usage.prompt_tokens, None if details is None else details.cached_tokens)
    return None
