"""Renders a request's prompt: a list of segments, each a special token of the template or a text.

Append-only: what stands for a message never depends on later ones, and fields that change the rendering stand in front, as
in the canonical bytes of `penstock_core.prompt`. Requests with equal canonical bytes render alike. Special tokens have ids
that text never gets, whatever their appearance in the text of the rendering.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from penstock_core.errors import BadInput
from penstock_core.prompt import RENDERING_FIELDS
from xxhash import xxh3_64_hexdigest

from penstock_worker.engine import Rendering
from penstock_worker.engines.sim.tokenizer import SPECIAL, Tokenizer

_decode_text = msgspec.json.Decoder(str).decode
_decode_parts = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_ONLY_AT_THE_END = frozenset({"add_generation_prompt", "continue_final_message"})


class Segment(NamedTuple):
    """A piece of a rendered prompt; `special` is a template token's id, or None for text that is to be tokenised."""

    text: str
    special: int | None = None


_SPECIALS = ("field", "value", "part", "end", "message", "content", "system", "developer", "user", "assistant", "tool", "function")
_TOKEN = {name: Segment(f"<|{name}|>", SPECIAL + number) for number, name in enumerate(_SPECIALS)}
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_FIELD, _VALUE, _PART, _END = _TOKEN["field"], _TOKEN["value"], _TOKEN["part"], _TOKEN["end"]


def render_chat(
    messages: Iterable[Mapping[str, msgspec.Raw]], fields: Mapping[str, msgspec.Raw], *, add_generation_prompt: bool, open_end: bool
) -> list[Segment]:
    """Segments of a chat prompt; `open_end` leaves the last message open, to be continued.

    Raises BadInput for content that is neither a string, nor null, nor a list of parts.
    """
    segments: list[Segment] = []
    for name in sorted(RENDERING_FIELDS.intersection(fields) - _ONLY_AT_THE_END):
        segments += (_FIELD, Segment(name), _VALUE, Segment(_json_text(fields[name])))
    for number, message in enumerate(messages):
        try:
            segments += _message(message)
        except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
            raise BadInput(
                f"messages[{number}]: {wrong}; allowed: role a string, content a string, null or parts", param="messages"
            ) from None
    if open_end and segments and segments[-1] is _END:
        segments.pop()
    if add_generation_prompt:
        segments.append(_TOKEN["assistant"])
    return [segment for segment in segments if segment.text]


def _message(message: Mapping[str, msgspec.Raw]) -> list[Segment]:
    role = _decode_text(message["role"]) if "role" in message else ""
    opening = [_TOKEN[role]] if role in _ROLES else [_TOKEN["message"], Segment(role), _TOKEN["content"]]
    segments = [*opening, *_content(message.get("content"))]
    for name in sorted(message.keys() - {"role", "content"}):
        segments += (_FIELD, Segment(name), _VALUE, Segment(_json_text(message[name])))
    return [*segments, _END]


def _content(raw: msgspec.Raw | None) -> list[Segment]:
    written = b"null" if raw is None else bytes(raw)
    if written == b"null":
        return []
    if written.startswith(b'"'):
        return [Segment(_decode_text(written))]
    segments: list[Segment] = []
    texts: list[str] = []
    for part in _decode_parts(written):
        text = part.get("text")
        if text is not None and len(part) == 2 and bytes(part.get("type", b"")) == b'"text"' and bytes(text).startswith(b'"'):
            texts.append(_decode_text(text))
            continue
        # Neighbouring text parts are one text, as in the canonical bytes; anything else stands as its hash.
        segments += (Segment("".join(texts)), _PART, Segment(xxh3_64_hexdigest(msgspec.json.encode(dict(sorted(part.items()))))))
        texts.clear()
    return [*segments, Segment("".join(texts))]


def _json_text(raw: msgspec.Raw) -> str:
    return bytes(raw).decode()


def prompt_ids(segments: Sequence[Segment], tokenizer: Tokenizer) -> bytes:
    """Token ids of a rendered prompt, uint32 each."""
    return b"".join(
        tokenizer.encode(segment.text).ids if segment.special is None else np.uint32(segment.special).tobytes() for segment in segments
    )


def rendering(segments: Sequence[Segment], tokenizer: Tokenizer) -> Rendering:
    """Tokens and offsets of a rendered prompt."""
    ids, ends, covered = [], [], 0
    for segment in segments:
        if segment.special is None:
            encoded = tokenizer.encode(segment.text)
            ids.append(encoded.ids)
            ends.append(encoded.ends + covered)
        else:
            ids.append(np.uint32(segment.special).tobytes())
            ends.append(np.array([covered + len(segment.text)], dtype=np.int64))
        covered += len(segment.text)
    token_ids = np.frombuffer(b"".join(ids), dtype=np.uint32).tolist()
    return Rendering(text="".join(segment.text for segment in segments), token_ids=token_ids, ends=np.concatenate(ends).tolist())
