"""What the kubelet and Prometheus ask an autoscaler process: `/healthz`, `/readyz`, `/metrics`.

Alive is: the event loop turns in time. Ready is: it is known what is to be sized. `process` keeps Health up to date.
"""

import time
from collections.abc import Callable

import msgspec
from penstock_dataplane.exchange import Exchange
from penstock_dataplane.server import Server
from prometheus_client import CollectorRegistry, generate_latest

MOST_LAG_S = 30.0
_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_JSON = (b"content-type", b"application/json")


class Health:
    """What is looked at. Everything is asked at the moment of the probe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.beat_at = clock()
        """When the event loop last turned."""
        self.listed: Callable[[], bool] = lambda: False
        self.models: Callable[[], int] = lambda: 0

    def troubles(self) -> list[str]:
        """What is wrong, in words; empty: alive."""
        lag_s = self._clock() - self.beat_at
        return [f"the event loop has not turned for {lag_s:.0f} s; allowed: {MOST_LAG_S:.0f}"] if lag_s > MOST_LAG_S else []


class Probes:
    """The HTTP server. `start`, then `aclose`."""

    def __init__(self, health: Health, registry: CollectorRegistry) -> None:
        self._health = health
        self._registry = registry
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
            return exchange.respond(200, [_TEXT], generate_latest(self._registry))
        if path not in ("/healthz", "/readyz"):
            return exchange.respond(404, [_JSON], b'{"error":"no such path; there are /healthz, /readyz and /metrics"}')
        troubles = self._health.troubles()
        if path == "/readyz" and not self._health.listed():
            troubles.append("it is not known yet which ModelServices there are")
        body = {"models": self._health.models(), "troubles": troubles}
        return exchange.respond(503 if troubles else 200, [_JSON], msgspec.json.encode(body))
