"""From a request to the chain that `kv_translate` follows: chunk keys, tokens that each needs, names of its token blocks.

`host` calls `chain_of` with the engine's rendering, off the event loop when the prompt is long. Pure: a body and a rendering
in, a frozen Chain out. It knows nothing of which blocks are held, nor of who asked.
"""

import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from penstock_core.prompt import Message, canonical_chat, canonical_ids, chunk_keys, escape_text, start_bytes
from xxhash import xxh3_64_intdigest

from penstock_worker.engine import Rendering

CHAT_PATH = "/v1/chat/completions"
TEXT_PATH = "/v1/completions"

_CONTINUATION = bytes(range(0x80, 0xC0))
_PAIR_RE = re.compile(rb"\x10[\x10\x1b-\x1f]")
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_messages = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_any = msgspec.json.Decoder(Any).decode
_NEXT_QUESTION: Message = {"role": msgspec.Raw(b'"user"'), "content": msgspec.Raw(b'"?"')}


class ChainRules(msgspec.Struct, frozen=True):
    """What all chains of one worker have in common."""

    secret: int
    """Fleet-wide seed of chunk keys, 0..2**64-1."""
    chunk_bytes: int
    block_tokens: int


class Chain(msgspec.Struct, frozen=True):
    """One prompt, laid out. `tokens_at[i]` tokens cover the text through chunk `keys[i]`; both lists are equally long."""

    salt: str
    adapter: str
    keys: list[int]
    tokens_at: list[int]
    """Non-decreasing, each 1..prompt tokens."""
    blocks: list[int]
    """Names of the full token blocks that the chunks need, in order: `block_name` of each block's tokens."""
    exact: bool
    """False where some of `tokens_at` had to be interpolated."""
    tokens: int = 0
    """Of the whole prompt."""


def block_name(tokens: bytes, secret: int) -> int:
    """Name of a block among those with the same parent; `tokens` are its ids as native uint32."""
    return xxh3_64_intdigest(tokens, secret)


def token_bytes(token_ids: Sequence[int]) -> bytes:
    """Native uint32. Raises OverflowError for an id outside 0..2**32-1."""
    return array("I", token_ids).tobytes()


def chain_of(path: str, body: bytes, rendering: Rendering, rules: ChainRules, *, salt: str = "", adapter: str = "") -> Chain | None:
    """Lay out a request's prompt; None for a request without one prompt (a batch of prompts, another path)."""
    fields = _decode_fields(body)
    layout = _layout(path, fields, rendering.text, rules.chunk_bytes)
    return None if layout is None else _chain(layout, fields, rendering, rules, salt, adapter)


def next_turn(path: str, body: bytes, output_text: str) -> bytes | None:
    """The body of a request that goes on after `output_text`, to be rendered for `extended_chain`; None where there is none.

    A chat gets the answer and a further question, because templates treat an answer that is not the last message differently.
    """
    fields = _decode_fields(body)
    if path == CHAT_PATH and "messages" in fields:
        answer = {"role": "assistant", "content": output_text}
        messages = [*_decode_messages(fields["messages"]), answer, _NEXT_QUESTION]
        return msgspec.json.encode({**fields, "messages": messages})
    if path == TEXT_PATH and isinstance(prompt := _decode_any(fields.get("prompt", b"null")), str):
        return msgspec.json.encode({**fields, "prompt": prompt + output_text})
    return None


def extended_chain(
    path: str, following: bytes, rendering: Rendering, rules: ChainRules, *, salt: str = "", adapter: str = ""
) -> Chain | None:
    """The chain through the end of the answer that `next_turn` put into `following`, and no byte further.

    What closes the answer's message is left out: clients add fields there, and engines do not compute it.
    """
    fields = _decode_fields(following)
    layout = _layout(path, fields, rendering.text, rules.chunk_bytes)
    if layout is None:
        return None
    if path == CHAT_PATH:
        layout = layout.until(layout.contents[-2])
    return _chain(layout, fields, rendering, rules, salt, adapter)


def _chain(layout: "_Layout", fields: Mapping[str, msgspec.Raw], rendering: Rendering, rules: ChainRules, salt: str, adapter: str) -> Chain:
    start = start_bytes(salt=salt.encode(), adapter=adapter, rendering=fields)
    keys: list[int] = chunk_keys(layout.canonical, start, rules.secret, rules.chunk_bytes).tolist()
    tokens_at, exact = _tokens_at(layout, rendering, len(keys), rules)
    packed, block_bytes = token_bytes(rendering.token_ids), 4 * rules.block_tokens
    last = min(len(packed), math.ceil(tokens_at[-1] / rules.block_tokens) * block_bytes) if tokens_at else 0
    blocks = [block_name(packed[end - block_bytes : end], rules.secret) for end in range(block_bytes, last + 1, block_bytes)]
    return Chain(salt, adapter, keys, tokens_at, blocks, exact, len(rendering.token_ids))


def _tokens_at(layout: "_Layout", rendering: Rendering, chunks: int, rules: ChainRules) -> tuple[list[int], bool]:
    """Tokens that cover the text through each chunk, and whether all of them are exact."""
    total = len(rendering.token_ids)
    ends = range(rules.chunk_bytes, rules.chunk_bytes * chunks + 1, rules.chunk_bytes)
    if layout.canonical.startswith(b"i"):
        added = total - (len(layout.canonical) - 1) // 4  # tokens that the engine put in front
        return [min(total, max(1, added + math.ceil((end - 1) / 4))) for end in ends], added == 0
    chars: list[float] = np.interp(ends, layout.at_bytes, layout.at_chars).tolist()
    if rendering.ends is None:
        scale = total / max(1, len(rendering.text))
        return [min(total, math.ceil(at * scale) + rules.block_tokens) for at in chars], False
    token_ends = rendering.ends
    return [min(total, bisect_left(token_ends, math.ceil(at)) + 1) for at in chars], layout.exact


class _Layout:
    """Canonical bytes, and control points (byte offset → character of the rendered text) between which lines are drawn."""

    def __init__(self, kind: bytes, text: str, chunk_bytes: int) -> None:
        self.canonical = kind
        self.at_bytes = [0]
        self.at_chars = [0]
        self.contents: list[int] = []  # end of each message's content, in bytes
        self.exact = True
        self._text = text
        self._chunk_bytes = chunk_bytes
        self._pieces = [kind]
        self._length = len(kind)

    def structure(self, written: bytes) -> None:
        """Bytes that stand for no text of their own: they lie between what is before and what is after."""
        self._pieces.append(written)
        self._length += len(written)

    def content(self, content: str) -> None:
        """Text of the client's, looked for in the rendered text after everything before it."""
        written = escape_text(content)
        begin = self._length
        self.structure(written)
        if not content:
            return
        kept = content
        found = self._text.find(kept, self.at_chars[-1])
        if found < 0 and (kept := content.strip()):  # many templates trim
            found = self._text.find(kept, self.at_chars[-1])
        if found < 0:
            self.exact = False
            return
        lead = content.find(kept)
        self._point(begin, found)
        if len(written) == len(content) == len(kept):
            self._point(self._length, found + len(kept))
        else:
            self._points_inside(written, begin, found, lead, len(kept))

    def _points_inside(self, written: bytes, begin: int, found: int, lead: int, kept: int) -> None:
        """A control point at every chunk end inside text whose bytes are not its characters (UTF-8, escapes, trimmed ends)."""
        escaped = b"\x10" in written
        ends = [*range((begin // self._chunk_bytes + 1) * self._chunk_bytes - begin, len(written), self._chunk_bytes), len(written)]
        chars, pending = 0, False
        for low, high in pairwise([0, *ends]):
            piece = written[low + pending : high]  # a chunk that ends after an escape byte has counted the character already
            if escaped:
                piece = _PAIR_RE.sub(b"x", piece)
                pending = piece.endswith(b"\x10")
            chars += len(piece.translate(None, _CONTINUATION))
            self._point(begin + high, found + min(kept, max(0, chars - lead)))

    def _point(self, at_byte: int, at_char: int) -> None:
        self.at_bytes.append(at_byte)
        self.at_chars.append(max(at_char, self.at_chars[-1]))

    def end(self) -> "_Layout":
        """Close: what stands after the last content needs the whole prompt."""
        self.canonical = b"".join(self._pieces)
        if self.at_bytes[-1] < self._length:
            self._point(self._length, len(self._text))
        return self

    def mark_content(self) -> None:
        self.contents.append(self._length)

    def until(self, end: int) -> "_Layout":
        """The layout of the first `end` bytes only."""
        self.canonical = self.canonical[:end]
        return self


def _layout(path: str, fields: Mapping[str, msgspec.Raw], text: str, chunk_bytes: int) -> _Layout | None:
    if path == CHAT_PATH and "messages" in fields:
        return _chat_layout(_decode_messages(fields["messages"]), text, chunk_bytes)
    if path != TEXT_PATH or "prompt" not in fields:
        return None
    prompt = _decode_any(fields["prompt"])
    if isinstance(prompt, str):
        layout = _Layout(b"t", text, chunk_bytes)
        layout.content(prompt)
        layout.mark_content()
        return layout.end()
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        layout = _Layout(b"", text, chunk_bytes)
        layout.structure(canonical_ids(prompt))
        return layout.end()
    return None


def _chat_layout(messages: Sequence[Message], text: str, chunk_bytes: int) -> _Layout:
    layout = _Layout(b"c", text, chunk_bytes)
    for message in messages:
        whole = canonical_chat([message])[1:]
        head = canonical_chat([{"role": message["role"]}])[1:-1] if "role" in message else b"\x1f"
        layout.structure(head)
        written = len(head)
        for part in _parts(message.get("content")):
            if isinstance(part, str):
                layout.content(part)
                written += len(escape_text(part))
            else:
                layout.structure(part)
                written += len(part)
        layout.mark_content()
        layout.structure(whole[written:])
        if len(whole) - written > 1:
            layout.exact = False  # other fields (tool calls): how a template writes them is not known
    return layout.end()


def _parts(content: msgspec.Raw | None) -> list[str | bytes]:
    """A content in canonical order: str for text, bytes for what is not."""
    if content is None:
        return []
    written = bytes(content)
    if written.startswith(b'"'):
        return [_decode_text(content)]
    if not written.startswith(b"["):
        return [canonical_chat([{"content": content}])[2:-1]]
    parts: list[str | bytes] = []
    for part in _decode_messages(content):
        canonical = canonical_chat([{"content": msgspec.Raw(msgspec.json.encode([part]))}])[2:-1]
        text = _decode_any(part["text"]) if "text" in part and not canonical.startswith(b"\x1d") else None
        parts.append(text if isinstance(text, str) else canonical)
    return parts
