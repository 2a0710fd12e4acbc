"""Request bodies of the router benchmarks: chat conversations of a given size that share a beginning, as real traffic does.

The same bodies go to `wrk`, to our own generator and into the mock workers' registered chunks.
"""

import json

MODEL = "bench"
BODIES = 64
"""Conversations in a run."""
API_KEY = "bench-key-0123456789abcdef"
_WORDS = ("pressure", "water", "gate", "valve", "turbine", "head", "flow", "pipe", "rotor", "stator", "intake", "spill", "draft", "runner")


def text(length: int, seed: int) -> str:
    """`length` characters of words, another order for each seed."""
    words: list[str] = []
    size, state = 0, seed * 2_654_435_761 + 1
    while size < length:
        state = (state * 1_103_515_245 + 12_345) % 2**31
        words.append(_WORDS[(state >> 16) % len(_WORDS)])
        size += len(words[-1]) + 1
    return " ".join(words)[:length]


def chat_body(size_bytes: int, index: int, *, stream: bool = False, max_tokens: int = 64, user: str = "") -> bytes:
    """A chat request of exactly `size_bytes`: a system prompt shared by 8 conversations, two turns, and a last question."""
    request = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": text(size_bytes // 4, index % 8)},
            {"role": "user", "content": text(size_bytes // 4, 100 + index)},
            {"role": "assistant", "content": text(size_bytes // 8, 200 + index)},
            {"role": "user", "content": ""},
        ],
        "max_tokens": max_tokens,
        "temperature": 0.7,
        "stream": stream,
    }
    if user:
        request["user"] = user
    short = size_bytes - len(json.dumps(request, separators=(",", ":")))
    if short < 0:
        raise ValueError(f"size_bytes is {size_bytes}; allowed: at least {size_bytes - short} for this conversation")
    request["messages"][3]["content"] = text(short, 300 + index)  # type: ignore[index]
    return json.dumps(request, separators=(",", ":")).encode()


def http_request(body: bytes, host: str) -> bytes:
    """The bytes on the wire of one POST with its API key."""
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {API_KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body
