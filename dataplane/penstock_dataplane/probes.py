"""What the kubelet and Prometheus ask a process that serves no requests: `/healthz`, `/readyz`, `/metrics`.

Operator and autoscaler say what is wrong with them; this answers. It judges nothing itself.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from penstock_dataplane.exchange import Exchange
from penstock_dataplane.server import Server

MOST_LAG_S = 30.0
"""An event loop that has not turned for longer is not alive."""
_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_JSON = (b"content-type", b"application/json")


def loop_troubles(lag_s: float) -> list[str]:
    """What is wrong with an event loop that turned `lag_s` ago; empty: alive."""
    return [f"the event loop has not turned for {lag_s:.0f} s; allowed: {MOST_LAG_S:.0f}"] if lag_s > MOST_LAG_S else []


class Health(Protocol):
    """What a process says of itself; asked at the moment of the probe."""

    def troubles(self) -> list[str]:
        """Why it is not alive, in words; empty: it is."""
        ...

    def unready(self) -> list[str]:
        """Why it is not ready either."""
        ...

    def facts(self) -> Mapping[str, object]:
        """What stands beside them in the answer."""
        ...


class Probes:
    """The HTTP server. `start`, then `aclose`."""

    def __init__(self, health: Health, metrics: Callable[[], bytes]) -> None:
        """`metrics` gives the Prometheus text."""
        self._health, self._metrics = health, metrics
        self._server = Server(self._serve, handler_prefixes=("/",))

    async def start(self, host: str, port: int) -> str:
        """Listen; gives the URL. Raises OSError if the port is taken."""
        bound, number = await self._server.start(host, port)
        return f"http://{f'[{bound}]' if ':' in bound else bound}:{number}"

    async def aclose(self) -> None:
        await self._server.close()

    async def _serve(self, exchange: Exchange) -> None:
        path = exchange.request.path
        if path == "/metrics":
            return exchange.respond(200, [_TEXT], self._metrics())
        if path not in ("/healthz", "/readyz"):
            return exchange.respond(404, [_JSON], b'{"error":"no such path; there are /healthz, /readyz and /metrics"}')
        troubles = self._health.troubles()
        if path == "/readyz":
            troubles += self._health.unready()
        return exchange.respond(503 if troubles else 200, [_JSON], msgspec.json.encode({**self._health.facts(), "troubles": troubles}))
