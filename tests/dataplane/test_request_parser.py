"""Client bytes to requests, without sockets: every cutting of the input must mean the same."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_dataplane.limits import ServerLimits
from penstock_dataplane.request_parser import RequestParser

LIMITS = ServerLimits(header_bytes=2048, body_bytes=20_000)
Outcome = tuple[list[tuple[object, ...]], int | None]


def parse(pieces: list[bytes], limits: ServerLimits = LIMITS) -> Outcome:
    """The requests in `pieces`, as values, and the status of the refusal that ended them."""
    parser = RequestParser(limits)
    taken: list[tuple[object, ...]] = []
    for piece in pieces:
        rest = piece
        while rest and parser.refusal is None:
            rest = parser.feed(rest)
            while parser.ready:
                r = parser.ready.popleft()
                taken.append((r.method, r.path, r.query, tuple(r.headers), r.body, r.keep_alive, r.http11))
        if parser.ended:
            break
    return taken, parser.refusal[0] if parser.refusal else None


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


names = st.sampled_from([b"X-A", b"accept", b"Content-Type", b"x-b"])
values = st.text(alphabet="abc 123/;=,", max_size=12).map(lambda t: t.strip().encode())
bodies = st.one_of(st.binary(max_size=60), st.integers(4000, 12_000).map(lambda n: b"z" * n))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE"]))
    target = draw(st.sampled_from([b"/", b"/v1/chat/completions", b"/a%20b?x=1&y", b"http://h:1/abs?q", b"/a?"]))
    head = b"%b %b HTTP/1.1\r\nHost: h\r\n" % (method, target)
    for name, value in draw(st.lists(st.tuples(names, values), max_size=4)):
        head += b"%b: %b\r\n" % (name, value)
    if draw(st.booleans()) and draw(st.booleans()):
        head += b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    body = draw(bodies)
    match draw(st.sampled_from(["none", "fixed", "chunked"])):
        case "fixed":
            return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        case "chunked":
            chunks = b"".join(b"%x;e=1\r\n%b\r\n" % (len(c), c) for c in cut(body, draw(st.lists(st.integers(0, 9999), max_size=4))) if c)
            trailer = draw(st.sampled_from([b"", b"X-Trailer: v\r\n"]))
            return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailer + b"\r\n"
    return head + b"\r\n"


@settings(deadline=None, max_examples=200)
@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 100_000), max_size=10))
def test_requests_do_not_depend_on_where_the_network_cut(stream: list[bytes], cuts: list[int]) -> None:
    """Pipelined requests cut anywhere give what each gives alone."""
    alone = [parse([request]) for request in stream]
    assert all(refused is None and len(taken) == 1 for taken, refused in alone)
    together = parse(cut(b"".join(stream), cuts))
    assert together == ([taken[0] for taken, _ in alone], None)


@settings(deadline=None, max_examples=50)
@given(requests())
def test_a_request_may_come_byte_by_byte(request: bytes) -> None:
    """One byte a read is the finest cut there is."""
    assert parse([bytes([byte]) for byte in request]) == parse([request])


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_garbage_never_raises(data: bytes, cuts: list[int]) -> None:
    """Whatever comes is a request, a wait for more, or a refusal with a client-error status."""
    _, refused = parse(cut(data, cuts))
    assert refused is None or 400 <= refused < 600


@settings(deadline=None, max_examples=300)
@given(requests(), st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
def test_a_damaged_request_never_raises(request: bytes, at: int, damage: bytes) -> None:
    """A valid request with a few bytes overwritten anywhere is taken, waited for or refused."""
    at %= len(request)
    parse([request[:at] + damage + request[at + len(damage) :]])


SMUGGLING = {
    "two equal lengths": b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "two lengths": b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of lengths": b"Content-Length: 3, 3\r\n\r\nabc",
    "length and chunked": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked in a list": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a signed length": b"Content-Length: +3\r\n\r\nabc",
    "a hexadecimal length": b"Content-Length: 0x3\r\n\r\nabc",
    "space before the colon": b"Content-Length : 3\r\n\r\nabc",
    "a folded line": b"X-A: 1\r\n Content-Length: 3\r\n\r\nabc",
    "bare line feeds": b"X-A: 1\nContent-Length: 3\r\n\r\nabc",
    "NUL in a value": b"X-A: a\0b\r\n\r\n",
    "a bad chunk size": b"Transfer-Encoding: chunked\r\n\r\n3 x\r\nabc\r\n0\r\n\r\n",
    "a chunk without its end": b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n",
}


@pytest.mark.parametrize("tail", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_ambiguous_framing_is_refused(tail: bytes) -> None:
    """Two readings of one message are how requests are smuggled: 400, and nothing behind it is read."""
    taken, refused = parse([b"POST / HTTP/1.1\r\nHost: h\r\n" + tail + b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"])
    assert (taken, refused) == ([], 400)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST / HTTP/1.1\r\nContent-Length: 20001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4e21\r\n" + b"x" * 20_001 + b"\r\n", 413),
        (b"GET / HTTP/1.1\r\nX-A: " + b"a" * 3000, 431),
        (b"GET /" + b"a" * 3000, 431),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: " + b"a" * 3000, 431),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;x=" + b"a" * 3000, 431),
        (b"POST / HTTP/1.1\r\nExpect: 200-ok\r\n\r\n", 417),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\n\r\n", 505),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET nowhere HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 1000, 1_000_000])
def test_what_cannot_be_served_is_refused_with_its_status(data: bytes, status: int, piece_bytes: int) -> None:
    """Limits and unknown wishes have a status each, however the bytes arrive."""
    pieces = [data[i : i + piece_bytes] for i in range(0, len(data), piece_bytes)]
    assert parse(pieces) == ([], status)


def test_many_tiny_requests_in_one_read_are_taken_a_few_at_a_time() -> None:
    """A read full of pipelined requests leaves most of itself unparsed, so its memory is that of its bytes."""
    parser = RequestParser(LIMITS)
    request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    rest = parser.feed(request * 5000)
    assert 0 < len(parser.ready) <= 8192 // len(request) + 1
    assert len(rest) + 8192 >= 5000 * len(request) - len(request)


def test_what_follows_connection_close_is_ignored() -> None:
    """Bytes behind a last request are no error."""
    taken, refused = parse([b"GET /a HTTP/1.1\r\nConnection: close\r\n\r\nrubbish"])
    assert [request[1] for request in taken] == ["/a"]
    assert refused is None
