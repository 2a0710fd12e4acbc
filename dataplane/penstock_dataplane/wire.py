"""Heads as bytes: status lines and header blocks, checked so that no value can smuggle a second line.

Used by server and client for everything they send. Names arrive in lower case. The framing headers are the data plane's own:
a caller who hands them in (a relayed head) has them dropped here, never sent twice.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import NewType

EncodedHeaders = NewType("EncodedHeaders", bytes)  # checked lines, made by `encode_headers`; two of them joined are one
HeaderList = Sequence[tuple[bytes, bytes]]
Headers = HeaderList | EncodedHeaders

_pair = b": ".join
_lines = b"\r\n".join

# Hop-by-hop and framing names (RFC 9110 §7.6.1, RFC 9112 §6): they describe one connection, so each side writes its own.
RESPONSE_FRAMING = frozenset(
    {b"connection", b"content-length", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
REQUEST_FRAMING = RESPONSE_FRAMING | {b"host", b"expect"}

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus}


def status_line(status: int) -> bytes:
    """`HTTP/1.1 200 OK` with its line end. ValueError outside 200..599 (1xx answers are not a handler's business)."""
    if not 200 <= status <= 599:
        raise ValueError(f"status is {status}; a final status must be in 200..599")
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status


def header_block(headers: Headers, framing: frozenset[bytes]) -> bytes:
    """The headers as `name: value` lines, each with its line end, without those named in `framing`.

    Encoded headers pass through. ValueError if a name or value holds CR, LF or NUL.
    """
    if isinstance(headers, bytes):
        return headers
    if not headers:
        return b""
    if not framing.isdisjoint([pair[0] for pair in headers]):
        headers = [pair for pair in headers if pair[0] not in framing]
        if not headers:
            return b""
    block = _lines(map(_pair, headers)) + b"\r\n"
    # As many lines as headers: a CR or LF inside a name or value would have made one more.
    if len(block.splitlines()) != len(headers) or 0 in block:
        raise ValueError(f"a header name or value holds CR, LF or NUL: {block[:400]!r}")
    return block


def encode_headers(headers: HeaderList) -> EncodedHeaders:
    """Headers as bytes, which every sending call takes in place of a list: encode constant ones once, join pieces with `+`.

    ValueError if a name or value holds CR, LF or NUL, or a name is a framing header of a request or response.
    """
    for name, _ in headers:
        if name in REQUEST_FRAMING:
            raise ValueError(f"header {name!r} belongs to the connection; it cannot be set")
    return EncodedHeaders(header_block(headers, RESPONSE_FRAMING))


def request_line(method: str, target: str | bytes) -> bytes:
    """`POST /path HTTP/1.1` with its line end. ValueError if the target is not printable ASCII without spaces."""
    raw = target.encode("ascii") if isinstance(target, str) else target
    if not method.isalpha() or not raw or not raw.isascii() or raw.split() != [raw] or not raw.decode("ascii").isprintable():
        raise ValueError(f"request line {method!r} {raw[:200]!r}: the method must be letters, the target printable ASCII without spaces")
    return b"%b %b HTTP/1.1\r\n" % (method.encode("ascii"), raw)
