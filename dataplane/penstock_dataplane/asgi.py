"""Runs an ASGI application (FastAPI: admin, health, metrics, console) for one exchange.

Called by `server.Server` for paths that no handler owns. `http` scope only: no lifespan, no websockets. A whole answer leaves in one
write; a streamed one waits for the client between pieces, so its memory is bounded. No request body or token of `/v1/*` comes here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

from penstock_dataplane.exchange import Exchange

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
log = logging.getLogger(__name__)

AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


async def serve_app(app: AsgiApp, exchange: Exchange) -> None:
    """Run `app` to its end for this exchange. Its exceptions pass through; an unfinished response is the caller's to deal with.

    What an app raises because its client has gone is no failure of the app: it ends the run quietly.
    """
    call = _Call(exchange)
    try:
        await app(_scope(exchange), call.receive, call.send)
    except Exception as error:
        if not call.refused_to_send:
            raise
        log.debug("app stopped at %s: the client has gone (%r)", exchange.request.path, error)


def _scope(exchange: Exchange) -> dict[str, Any]:
    request = exchange.request
    host, _, port = request.peer.rpartition(":")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1" if request.http11 else "1.0",
        "method": request.method,
        "scheme": "http",
        "path": unquote_to_bytes(request.path).decode("utf-8", "replace"),
        "raw_path": request.path.encode("ascii"),
        "query_string": request.query,
        "root_path": "",
        "headers": request.headers,
        "client": (host, int(port)) if host else None,
        "server": None,
        "state": {},
    }


class _Call:
    """The receive and send sides of one run of the app."""

    __slots__ = ("_body_given", "_exchange", "_gone", "_head", "refused_to_send")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.refused_to_send = False
        self._body_given = False
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._gone: asyncio.Event = asyncio.Event()
        exchange.on_disconnect(self._gone.set)

    async def receive(self) -> Message:
        if not self._body_given:
            self._body_given = True
            return {"type": "http.request", "body": self._exchange.request.body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        exchange = self._exchange
        if exchange.gone:
            self.refused_to_send = True
            raise OSError("the client has gone")  # what ASGI 2.4 asks for
        if message["type"] == "http.response.start":
            self._head = (message["status"], [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())])
        elif message["type"] == "http.response.body":
            await self._send_body(bytes(message.get("body", b"")), bool(message.get("more_body", False)))

    async def _send_body(self, body: bytes, more: bool) -> None:
        exchange = self._exchange
        if self._head is not None:
            status, headers = self._head
            self._head = None
            if not more:
                exchange.respond(status, headers, body)
                self._gone.set()
                return
            exchange.start(status, headers)
        exchange.write(body)
        if more:
            exchange.flush()
            await exchange.drain()
        else:
            exchange.finish()
            self._gone.set()
