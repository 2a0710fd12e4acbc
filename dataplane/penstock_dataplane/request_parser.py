"""Client bytes in, whole requests out; no I/O, no clock.

`connection.ServerConnection` feeds it. Framing is httptools' (llhttp in strict mode, which refuses conflicting or repeated
Content-Length and Content-Length beside Transfer-Encoding); the bounds on heads, bodies and pipelined input are kept here.
"""

from collections import deque
from typing import Any, NoReturn

import httptools

from penstock_dataplane.limits import ServerLimits

_FEED_BYTES = 8192  # longer reads are parsed in such pieces until a head is whole, so a read full of tiny requests stays bounded
_METHODS = {name: name.decode() for name in (b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS")}
_TOLD_APART = frozenset({b"connection", b"content-length", b"expect", b"transfer-encoding", b"upgrade"})


class Request:
    """A whole request.

    `path` is as sent, without query, still percent-encoded; `query` without the `?`; `headers` in order with lower-case names;
    `peer` is `address:port`, empty on a unix socket; `received_s` is `loop.time()` when the last byte was in. `keep_alive` is the
    client's wish; `http11` is False for HTTP/1.0.
    """

    __slots__ = ("body", "headers", "http11", "keep_alive", "method", "path", "peer", "query", "received_s")

    def __init__(
        self,
        method: str,
        path: str,
        query: bytes,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        keep_alive: bool = True,
        http11: bool = True,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive
        self.http11 = http11
        self.peer = ""
        self.received_s = 0.0

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class _StopParsing(Exception):
    pass


class RequestParser:
    """The parser of one connection. `ready` holds whole requests in order; `refusal` (status, message) ends its use."""

    __slots__ = (
        "_body",
        "_body_came",
        "_chunked",
        "_dry_bytes",
        "_headers",
        "_http11",
        "_keep_alive",
        "_length",
        "_limits",
        "_llhttp",
        "_method",
        "_special",
        "_upgrade",
        "_url",
        "ended",
        "expects_continue",
        "head_done",
        "ready",
        "refusal",
    )

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._llhttp: Any = httptools.HttpRequestParser(self)
        self.ready: deque[Request] = deque()
        self.refusal: tuple[int, str] | None = None
        self.ended = False  # a request said `Connection: close`: what follows it is ignored
        self._reset()

    def _reset(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: bytes | bytearray = b""
        self._length = 0
        self._chunked = False
        self._special = False
        self._upgrade = False
        self._keep_alive = True
        self._http11 = True
        self._body_came = False  # since the last count
        self._dry_bytes = 0  # input since the last body byte: head, trailers, chunk extensions
        self._method: bytes | None = None  # known beforehand only after an upgrade was declined
        self.head_done = False
        self.expects_continue = False

    @property
    def begun(self) -> bool:
        """True if anything came behind the request taken last: a part of a request, whole ones, or what had to be refused."""
        return bool(self.ready or self._dry_bytes or self.head_done or self._url or self.refusal)

    @property
    def body_begun(self) -> bool:
        """True if a byte of the unfinished request's body is in."""
        return bool(self._body)

    def feed(self, data: bytes) -> bytes:
        """Parse until a request is whole or the data ends; returns what was left unparsed."""
        rest = b""
        try:
            if len(data) > _FEED_BYTES:
                rest = self._feed_pieces(data)
            else:
                self._llhttp.feed_data(data)
                if not self.ready:
                    self._account(len(data))
        except httptools.HttpParserUpgrade as upgrade:
            rest = self._decline_upgrade(data[upgrade.args[0] :])
        except (httptools.HttpParserError, _StopParsing) as error:
            if self.refusal is None and not self.ended:
                self.refusal = (400, f"malformed request: {error}")
        return rest

    def close(self) -> None:
        """Break the reference cycle with the C parser; not used after."""
        self._llhttp = None
        self.ready.clear()

    def _feed_pieces(self, data: bytes) -> bytes:
        view = memoryview(data)
        start = 0
        while start < len(data):
            size = _FEED_BYTES
            if self.head_done and not self._chunked:
                size = max(1, self._length - len(self._body))
            piece = view[start : start + size]
            try:
                self._llhttp.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                return self._decline_upgrade(data[start + upgrade.args[0] :])
            start += len(piece)
            if self.ready:
                break
            self._account(len(piece))
        return data[start:]

    def _account(self, size: int) -> None:
        """Count input that brought no body; stop at a head, trailers or chunk extensions over the limit."""
        if self._body_came:
            self._body_came = False
            self._dry_bytes = 0
            return
        self._dry_bytes += size
        limit = self._limits.header_bytes
        if self._dry_bytes > limit and (self._chunked or not self.head_done):
            self._stop(431, f"request head or trailers are over the limit of {limit} bytes")

    def _stop(self, status: int, message: str) -> NoReturn:
        if self.refusal is None:
            self.refusal = (status, message)
        raise _StopParsing

    def _decline_upgrade(self, rest: bytes) -> bytes:
        """Serve a request that wishes to switch protocols as plain HTTP/1.1 (RFC 9110 §7.8); returns what is to be fed next.

        llhttp ends its work at such a head and reads no body, so a new parser is told the framing, and the rest is kept.
        """
        url, headers, length, chunked = self._url, self._headers, self._length, self._chunked
        expects, method = self.expects_continue, self._llhttp.get_method()
        self._reset()
        self._llhttp = httptools.HttpRequestParser(self)
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % length
        self._upgrade = True  # holds back the completion of the made-up head when there is no body
        self._llhttp.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        self._upgrade = False
        self._url, self._headers, self._method, self.expects_continue = url, headers, method, expects
        if length == 0 and not chunked:
            self.on_message_complete()
            return rest
        return self.feed(rest) if rest else b""

    # callbacks of httptools

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_done:
            return  # a trailer; nothing here uses them
        name = name.lower()
        self._headers.append((name, value))
        if name in _TOLD_APART:
            self._note(name, value)

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            self._length = int(value)  # llhttp has made sure of digits, and of only one such header
        elif name == b"transfer-encoding":
            if self._chunked or value.strip().lower() != b"chunked":
                self._stop(400, f"transfer-encoding {value[:40]!r} is not `chunked`, once")
            self._chunked = self._special = True
        elif name == b"expect":
            if value.lower() != b"100-continue":
                self._stop(417, f"expectation {value[:40]!r} is not `100-continue`")
            self.expects_continue = True
        else:
            self._special = True

    def on_headers_complete(self) -> None:
        self.head_done = True
        keep_alive = self._llhttp.should_keep_alive()
        if not keep_alive or self._special:
            self._check_version(keep_alive)
        if self._length > self._limits.body_bytes:
            self._stop(413, f"body is {self._length} bytes; the limit is {self._limits.body_bytes}")

    def _check_version(self, keep_alive: bool) -> None:
        version = self._llhttp.get_http_version()
        if version not in ("1.1", "1.0"):
            self._stop(505, f"HTTP/{version} is not spoken here; HTTP/1.1 is")
        self._keep_alive = keep_alive
        self._http11 = version == "1.1"
        if not self._http11:
            self.expects_continue = False
            if self._chunked:
                self._stop(400, "transfer-encoding is not part of HTTP/1.0")
        if self._llhttp.should_upgrade():
            self._upgrade = True

    def on_body(self, data: bytes) -> None:
        self._body_came = True
        body = self._body
        if not body:
            self._body = data
            return
        if type(body) is bytes and len(body) + len(data) == self._length:
            self._body = body + data  # most long bodies: what came with the head, and the rest
            return
        if type(body) is not bytearray:
            self._body = body = bytearray(body)
        body += data
        if self._chunked and len(body) > self._limits.body_bytes:
            self._stop(413, f"body is over the limit of {self._limits.body_bytes} bytes")

    def on_message_complete(self) -> None:
        if self._upgrade:
            return
        body = self._body
        if len(body) > self._limits.body_bytes:
            self._stop(413, f"body is {len(body)} bytes; the limit is {self._limits.body_bytes}")
        method = self._method or self._llhttp.get_method()
        path, _, query = self._url.partition(b"?")
        if path[:1] != b"/" and path != b"*":
            path, query = self._absolute_form()
        keep_alive = self._keep_alive
        self.ready.append(
            Request(
                _METHODS.get(method) or method.decode("ascii"),
                path.decode("ascii"),
                query,
                self._headers,
                body if type(body) is bytes else bytes(body),
                keep_alive,
                self._http11,
            )
        )
        self.ended = not keep_alive
        self._reset()

    def _absolute_form(self) -> tuple[bytes, bytes]:
        if self._llhttp.get_method() == b"CONNECT":
            self._stop(405, "CONNECT is not served")
        try:
            url = httptools.parse_url(self._url)
        except httptools.HttpParserError:
            self._stop(400, f"request target {self._url[:80]!r} is not understood")
        return url.path or b"/", url.query or b""
