"""The small HTTP server of each Pod of a gang: the kubelet's probes, and in the leading Pod what the others must know.

    GET  /livez                 this process turns
    GET  /readyz                the gang serves
    GET  /penstock/gang         the leader's news        (fleet token)
    POST /penstock/gang/drain   a Pod of the gang leaves (fleet token)

It stands beside the worker's own HTTP, because that one comes and goes with the engine while this process lives on.
"""

from collections.abc import Callable

import msgspec
from penstock_dataplane.exchange import Exchange
from penstock_dataplane.server import Server

from penstock_worker.answering import JSON_TYPE, holds_token, openai_error
from penstock_worker.gang import GangNews

_TEXT = (b"content-type", b"text/plain; charset=utf-8")
NEWS_PATH, DRAIN_PATH = "/penstock/gang", "/penstock/gang/drain"


class GangPage:
    """See the module. `start`, then `aclose`."""

    def __init__(
        self,
        token: str,
        ready: Callable[[], bool],
        *,
        news: Callable[[], GangNews] | None = None,
        on_drain: Callable[[], None] | None = None,
    ) -> None:
        """`news` and `on_drain` are the leader's; without them there are only the probes."""
        self._token = token
        self._ready = ready
        self._news = news
        self._on_drain = on_drain
        self._server = Server(self._serve, handler_prefixes=("/",))

    async def start(self, host: str, port: int) -> int:
        """Listen; gives the port. Raises OSError if it is taken."""
        return (await self._server.start(host, port))[1]

    async def aclose(self) -> None:
        await self._server.close()

    async def _serve(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.path == "/livez":
            return exchange.respond(200, [_TEXT], b"")
        if request.path == "/readyz":
            ready = self._ready()
            return exchange.respond(200 if ready else 503, [_TEXT], b"" if ready else b"the gang does not serve yet\n")
        if not holds_token(request, self._token):
            return exchange.respond(403, [JSON_TYPE], openai_error(403, "x-penstock-token is not the fleet's"))
        if self._news is None or self._on_drain is None or request.path not in (NEWS_PATH, DRAIN_PATH):
            return exchange.respond(404, [JSON_TYPE], openai_error(404, f"no such path: {request.path}"))
        wanted = "GET" if request.path == NEWS_PATH else "POST"
        if request.method != wanted:
            return exchange.respond(405, [JSON_TYPE], openai_error(405, f"method is {request.method}; allowed: {wanted}"))
        if request.path == DRAIN_PATH:
            self._on_drain()
        return exchange.respond(202 if request.path == DRAIN_PATH else 200, [JSON_TYPE], msgspec.json.encode(self._news()))
