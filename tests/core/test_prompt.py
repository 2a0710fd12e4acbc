"""Canonical bytes and chunk keys: no two different prompts look alike, equal prefixes do."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_core import compiled_hash
from penstock_core.compiled_hash import CHUNK_BYTES
from penstock_core.prompt import (
    PlainMessage,
    canonical_chat,
    canonical_ids,
    canonical_plain_chat,
    canonical_text,
    chunk_keys,
    escape,
    start_bytes,
)

_decode_messages = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode

# Text with many structure and escape bytes in it, which ordinary text almost never has.
nasty_text = st.text(st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from('\x10\x1b\x1c\x1d\x1e\x1f\\"')), max_size=40)
messages_lists = st.lists(
    st.fixed_dictionaries(
        {"role": nasty_text, "content": nasty_text},
        optional={"name": nasty_text, "tool_calls": st.lists(nasty_text, max_size=2), "refusal": st.none()},
    ),
    min_size=1,
    max_size=4,
)


def canonical(messages: list[dict[str, object]]) -> bytes:
    return canonical_chat(_decode_messages(json.dumps(messages)))


def unescape(escaped: bytes) -> bytes:
    out, at = bytearray(), 0
    while at < len(escaped):
        at += escaped[at] == 0x10
        out.append(escaped[at])
        at += 1
    return bytes(out)


def split_unescaped(data: bytes, mark: int) -> list[bytes]:
    pieces, current, at = [], bytearray(), 0
    while at < len(data):
        if data[at] == 0x10:
            current += data[at : at + 2]
            at += 2
        elif data[at] == mark:
            pieces.append(bytes(current))
            current = bytearray()
            at += 1
        else:
            current.append(data[at])
            at += 1
    return [*pieces, bytes(current)]


def read_back(data: bytes) -> list[dict[str, object]]:
    """The inverse of canonical_chat, written from the format's description alone."""
    assert data[:1] == b"c"
    messages = []
    *rows, rest = split_unescaped(data[1:], 0x1E)
    assert rest == b""
    for row in rows:
        first, *fields = split_unescaped(row, 0x1C)
        role, content = split_unescaped(first, 0x1F)
        message: dict[str, object] = {"role": unescape(role).decode(), "content": unescape(content).decode()}
        for field in fields:
            name, value = split_unescaped(field, 0x1F)
            message[unescape(name).decode()] = json.loads(unescape(value))
        messages.append(message)
    return messages


@given(messages_lists)
def test_a_chat_can_be_read_back_from_its_canonical_bytes(messages: list[dict[str, object]]) -> None:
    """Reading back is only possible when no field, message or text can be taken for another."""
    assert read_back(canonical(messages)) == messages


@given(nasty_text)
def test_escaping_is_undone_exactly(text: str) -> None:
    """Escaped text holds no bare structure byte, and unescaping gives the text again."""
    escaped = escape(text.encode())
    assert unescape(escaped) == text.encode()
    assert all(len(split_unescaped(escaped, mark)) == 1 for mark in (0x1B, 0x1C, 0x1D, 0x1E, 0x1F))


@given(messages_lists, messages_lists, st.integers(4, 64))
def test_chunks_are_shared_exactly_as_far_as_the_text_is(
    first: list[dict[str, object]], second: list[dict[str, object]], size: int
) -> None:
    """Key i is equal if and only if the canonical bytes are equal through chunk i."""
    one, two = canonical(first), canonical(second)
    keys_one, keys_two = chunk_keys(one, b"", 7, size), chunk_keys(two, b"", 7, size)
    for i in range(min(len(keys_one), len(keys_two))):
        assert (keys_one[i] == keys_two[i]) == (one[: (i + 1) * size] == two[: (i + 1) * size])


@given(messages_lists, messages_lists)
def test_a_longer_conversation_keeps_the_keys_of_its_beginning(head: list[dict[str, object]], tail: list[dict[str, object]]) -> None:
    """Appending messages changes no key of a full chunk before them."""
    before, after = chunk_keys(canonical(head), b"", 1, 16), chunk_keys(canonical(head + tail), b"", 1, 16)
    assert np.array_equal(after[: len(before)], before)


def test_text_parts_equal_the_plain_string() -> None:
    """The list form of a content is the same prompt as its string form."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    assert canonical(parts) == canonical([{"role": "user", "content": "Hello"}])


def test_other_parts_are_told_apart_by_their_json() -> None:
    """Two images differ, and an image is not its own JSON written as text."""
    image = {"type": "image_url", "image_url": {"url": "data:a"}}
    one = canonical([{"role": "user", "content": [image]}])
    two = canonical([{"role": "user", "content": [{**image, "image_url": {"url": "data:b"}}]}])
    assert len({one, two, canonical([{"role": "user", "content": json.dumps(image)}])}) == 3


def test_kinds_of_prompt_never_share_keys() -> None:
    """The same bytes as text and as ids are different prompts."""
    ids = [0x61616161] * 16
    assert canonical_ids(ids)[1:] == canonical_text("a" * 64)[1:]
    assert not set(chunk_keys(canonical_ids(ids), b"", 1, 16)) & set(chunk_keys(canonical_text("a" * 64), b"", 1, 16))


@pytest.mark.parametrize(
    "other",
    [
        start_bytes(salt=b"tenant"),
        start_bytes(adapter="tenant"),
        start_bytes(rendering={"tools": msgspec.Raw(b"[]")}),
        start_bytes(rendering={"reasoning_effort": msgspec.Raw(b"[]")}),
        start_bytes(salt=b"\x1ftenant"),
    ],
)
def test_salt_adapter_and_rendering_fields_isolate(other: bytes) -> None:
    """Whatever stands in front of the prompt changes every key."""
    text = canonical_text("x" * 4096)
    plain = start_bytes()
    assert other != plain
    assert not set(chunk_keys(text, other, 1)) & set(chunk_keys(text, plain, 1))


def test_starts_differ_where_one_field_could_imitate_another() -> None:
    """Salt, adapter and fields are separated, so moving bytes between them gives another start."""
    starts = [
        start_bytes(salt=b"ab"),
        start_bytes(salt=b"a", adapter="b"),
        start_bytes(adapter="ab"),
        start_bytes(adapter="a\x1ctools\x1fb"),
        start_bytes(adapter="a", rendering={"tools": msgspec.Raw(b"b")}),
    ]
    assert len(set(starts)) == len(starts)


def test_fields_that_do_not_change_the_rendering_do_not_isolate() -> None:
    """Sampling fields leave the keys alone."""
    assert start_bytes(rendering={"temperature": msgspec.Raw(b"1")}) == start_bytes()


def test_another_secret_gives_other_keys() -> None:
    """Without the secret no tenant can compute a key."""
    text = canonical_text("x" * 1024)
    assert not set(chunk_keys(text, b"", 1)) & set(chunk_keys(text, b"", 2))


@given(st.binary(max_size=400), st.integers(0, 30))
def test_no_more_keys_than_asked_for_and_always_the_first(data: bytes, most: int) -> None:
    """A bound on their number leaves those that are given as they are; a part of a chunk has no key."""
    every = chunk_keys(data, b"s", 3, 16)
    assert len(every) == len(data) // 16
    assert chunk_keys(data, b"s", 3, 16, most).tolist() == every[:most].tolist()


@given(st.lists(st.fixed_dictionaries({"role": st.one_of(st.just("user"), nasty_text), "content": nasty_text}), min_size=1, max_size=4))
def test_plain_messages_have_the_same_canonical_bytes(messages: list[dict[str, object]]) -> None:
    """The short way for messages of a role and a text gives what the general way gives."""
    written = json.dumps(messages).encode()
    plain = msgspec.json.decode(written, type=list[PlainMessage])
    assert canonical_plain_chat(plain) == canonical_plain_chat(plain, unescaped=b"\\" not in written) == canonical(messages)


@pytest.mark.parametrize("special", [0x10, 0x1B, 0x1C, 0x1D, 0x1E, 0x1F])
def test_json_without_a_backslash_holds_no_structure_byte(special: int) -> None:
    """What `canonical_plain_chat` is told by the lack of backslashes: unescaped control characters are refused."""
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(b'[{"role": "user", "content": "a%cb"}]' % special, type=list[PlainMessage])


@given(
    st.binary(max_size=5000),
    st.integers(0, 2**64 - 1),
    st.one_of(st.sampled_from(CHUNK_BYTES), st.integers(1, 1200)),
    st.integers(0, 400),
)
def test_compiled_keys_are_those_of_the_library(canonical: bytes, secret: int, chunk_bytes: int, most: int) -> None:
    """For any text, secret, chunk size and bound the compiled chain gives xxhash's keys."""
    compiled = compiled_hash.chunk_keys(canonical, b"start", secret, chunk_bytes, most)
    np.testing.assert_array_equal(compiled, chunk_keys(canonical, b"start", secret, chunk_bytes, most))
    assert compiled.dtype == np.uint64 and (compiled.flags.writeable or not len(compiled))
