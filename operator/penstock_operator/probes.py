"""What the kubelet and Prometheus ask the operator: `/healthz`, `/readyz`, `/metrics`.

Alive is: the event loop turns in time, Kopf's thread lives, and each watch has said something (a bookmark will do) lately; while it
waits for the Lease only the loop counts. `process` keeps Health up to date.
"""

import time
from collections.abc import Callable, Mapping

import msgspec
from penstock_dataplane.exchange import Exchange
from penstock_dataplane.server import Server

from penstock_operator.metrics import OperatorMetrics

MOST_WATCH_AGE_S = 180.0
"""Bookmarks come about every minute."""
MOST_LAG_S = 30.0
_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_JSON = (b"content-type", b"application/json")


class Health:
    """What is looked at. Everything is asked at the moment of the probe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.beat_at = clock()
        """When the loop last turned."""
        self.leading = False
        self.synced: Callable[[], bool] = lambda: False
        self.ages: Callable[[], Mapping[str, float]] = dict
        self.watching: Callable[[], bool] = lambda: True

    def troubles(self) -> list[str]:
        """What is wrong, in words; empty: alive."""
        found = []
        lag_s = self._clock() - self.beat_at
        if lag_s > MOST_LAG_S:
            found.append(f"the event loop has not turned for {lag_s:.0f} s; allowed: {MOST_LAG_S:.0f}")
        if not self.leading:
            return found
        if not self.watching():
            found.append("the thread that watches has ended")
        for kind, age_s in self.ages().items():
            if age_s > MOST_WATCH_AGE_S:
                found.append(f"the watch of {kind} has said nothing for {age_s:.0f} s; allowed: {MOST_WATCH_AGE_S:.0f}")
        return found


class Probes:
    """The HTTP server. `start`, then `aclose`."""

    def __init__(self, health: Health, metrics: OperatorMetrics) -> None:
        self._health = health
        self._metrics = metrics
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
            return exchange.respond(200, [_TEXT], self._metrics.text())
        if path not in ("/healthz", "/readyz"):
            return exchange.respond(404, [_JSON], b'{"error":"no such path; there are /healthz, /readyz and /metrics"}')
        troubles = self._health.troubles()
        if path == "/readyz" and self._health.leading and not self._health.synced():
            troubles.append("not everything has been listed yet")
        body = {"leading": self._health.leading, "troubles": troubles}
        return exchange.respond(503 if troubles else 200, [_JSON], msgspec.json.encode(body))
