"""The ways an upstream call can end badly, one small tree.

Raised by `Client.request`, `Response.read` and handed to `BodySink.on_error`. The caller's question is always "may another
endpoint be tried?"; the class and `before_head` answer it. Nothing here knows of statuses or models.
"""


class UpstreamError(Exception):
    """A call to an origin failed.

    Attributes: `origin` (text form, `http://host:port`), `detail` (what happened), `before_head` (True while no response head
    had arrived, so nothing of the answer can have reached a client).
    """

    def __init__(self, origin: str, detail: str, *, before_head: bool = True) -> None:
        super().__init__(f"{origin}: {detail}")
        self.origin = origin
        self.detail = detail
        self.before_head = before_head


class ConnectFailed(UpstreamError):
    """No connection could be made within `connect_timeout_s`: refused, unreachable, unresolved or too slow."""


class ConnectionLost(UpstreamError):
    """The connection ended before the response was whole."""

    def __init__(self, origin: str, detail: str, *, before_head: bool = True, untouched: bool = False) -> None:
        super().__init__(origin, detail, before_head=before_head)
        self.untouched = untouched  # not one response byte had arrived


class DeadlineExceeded(UpstreamError):
    """The caller's deadline passed, or no byte arrived for `stall_timeout_s`."""


class ProtocolGarbage(UpstreamError):
    """The upstream answered something that is not HTTP/1.x, or a head over `header_bytes`."""


class BodyTooLarge(UpstreamError):
    """A response body went over the limit given to `Response.read`."""


class PoolFull(UpstreamError):
    """`max_connections_per_origin` connections to this origin are all busy."""
