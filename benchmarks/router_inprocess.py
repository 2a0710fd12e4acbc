"""CPU of one unary request through a whole router in this process, without sockets, and of its pieces one by one.

`python -m benchmarks.router_inprocess`. Everything is the router's own: connections, director, scheduler, index mirror, dispatch,
client, metrics, keys. Only the transports are stubs that hand bytes over in the loop's next turn, so that neither the kernel
nor another process blurs what a change of the code is worth.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from penstock_cli.router import settle_memory
from penstock_core.compiled_hash import chunk_keys
from penstock_core.endpoint import Endpoint
from penstock_core.errors import Outcome
from penstock_core.facts import HEADER as FACTS_HEADER
from penstock_core.facts import decode_facts
from penstock_core.kv_events import KvBatch
from penstock_core.prompt import start_bytes
from penstock_dataplane.connection import ServerConnection
from penstock_dataplane.exchange import Exchange
from penstock_dataplane.loop import run as run_loop
from penstock_dataplane.server import Server
from penstock_dataplane.upstream import UpstreamConnection
from penstock_kvindex.mirror import Mirror
from penstock_kvindex.mirror import warm_up as warm_mirror_up
from penstock_router.app import Router
from penstock_router.config import RouterConfig, Secrets
from penstock_router.endpoints import Served
from penstock_router.head import read_head
from penstock_router.legs import origin_of
from penstock_router.openai import parse, read_usage
from penstock_router.prefixes import MOST_CHUNKS
from penstock_router.registered import MirrorCache
from penstock_router.scheduling import Ask
from penstock_router.tally import Tally

from benchmarks.bodies import API_KEY, BODIES, MODEL, chat_body, http_request
from benchmarks.mock_registration import held_keys, record_of
from benchmarks.mock_worker import UNARY
from benchmarks.table import Row, keep, show

CONNECTIONS = 64
REQUESTS = 1_000
REPEATS = 40
HELD = 16
PATH = "/v1/chat/completions"


class StubTransport:
    """The other end of a connection: what is written to it is answered by `answer` in the loop's next turn."""

    def __init__(self, answer: Callable[[], None]) -> None:
        self._answer = answer
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        self._loop.call_soon(self._answer)

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> Any:
        return None

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass

    close = abort


class Load:
    """Clients in a closed loop over stub transports. State: how many requests are still to be sent, and answered."""

    def __init__(self, server: Server, body_bytes: int) -> None:
        self._requests = [http_request(chat_body(body_bytes, index), "127.0.0.1") for index in range(BODIES)]
        self._loop = asyncio.get_running_loop()
        self._sent = self._left = self._open = 0
        self._done = self._loop.create_future()
        server._prepare()
        self._connections = [ServerConnection(server, self._loop) for _ in range(CONNECTIONS)]
        for connection in self._connections:
            connection.connection_made(StubTransport(lambda connection=connection: self._answered(connection)))  # type: ignore[arg-type,misc]

    async def run(self, requests: int) -> float:
        """µs of CPU a request."""
        self._left, self._open = requests, len(self._connections)
        self._done = self._loop.create_future()
        began = time.process_time_ns()
        for connection in self._connections:
            self._answered(connection)
        await self._done
        return (time.process_time_ns() - began) / requests / 1e3

    def _answered(self, connection: ServerConnection) -> None:
        if self._left <= 0:
            self._open -= 1
            if not self._open:
                self._done.set_result(None)
            return
        self._left -= 1
        self._sent += 1
        connection.data_received(self._requests[self._sent % BODIES])


def upstreams(router: Router, endpoints: list[Endpoint]) -> None:
    """Connections of the router's client that are answered at once."""
    for endpoint in endpoints:
        pool = router.client._open_pool(origin_of(endpoint.record.url))
        for _ in range(CONNECTIONS):
            connection = UpstreamConnection(pool, asyncio.get_running_loop())
            connection.connection_made(StubTransport(lambda connection=connection: connection.data_received(UNARY)))  # type: ignore[arg-type,misc]
            pool.open.add(connection)
            pool.idle.append(connection)


def world(policy: str, workers: int, held: int, folder: Path) -> tuple[Router, Served]:
    """A router that has been told of registered workers, of the chunks that they hold, and of streams that they decode."""
    keys = folder / "keys.yaml"
    keys.write_text(f"{API_KEY}: {{tenant: bench, weight: 2}}\nanother-key: {{tenant: other}}\n")
    router = Router(RouterConfig(api_keys=str(keys), policy=policy), Secrets(chunk_secret=0), rng=Random(5))
    mirror = Mirror()
    served = router.directory.add(MODEL, MirrorCache(mirror, router.config.speculative_s), chunk_bytes=256, ours=True)
    endpoints = [Endpoint(record_of(number, 10_000 + number), slot=number) for number in range(workers)]
    for endpoint in endpoints:
        assert endpoint.slot is not None
        mirror.apply(endpoint.slot, KvBatch(1 + endpoint.slot, 1, added=held_keys(endpoint.slot, workers)))
    now = asyncio.get_running_loop().time()
    served.set_endpoints(endpoints, now)
    for _ in range(held * workers):
        booking = served.scheduler.place((Ask(prompt_tokens=1000),), now)[0]
        assert booking is not None
        booking.first_token(now)
    upstreams(router, endpoints)
    served.tally = Tally()  # as where a Redis is followed
    return router, served


def tallied(tally: Tally) -> None:
    """What noting a request's arrival and end for autoscalers appends."""
    tally.arrivals.append((1.0, 1_000))
    tally.endings.append((1.0, 1_000, 0, 64, 1.0, 1.0, 1.0, Outcome.OK))


def pieces(router: Router, served: Served, body_bytes: int) -> dict[str, Callable[[], Any]]:
    """Name → one piece of a request, on its own and on the same data each time."""
    loop = asyncio.get_running_loop()
    body = chat_body(body_bytes, 3)
    chat, start = parse(PATH, body), start_bytes()
    keys = chunk_keys(chat.canonical, start, 0, served.chunk_bytes, MOST_CHUNKS)
    hits, _ = served.cache.find(keys)
    ask = Ask(prompt_tokens=1000, hits=hits, max_tokens=64)
    head = [(b"host", b"127.0.0.1"), (b"authorization", b"Bearer " + API_KEY.encode()), (b"content-type", b"application/json")]
    answer_head, answer = UNARY.split(b"\r\n\r\n")
    facts = dict(line.split(b": ", 1) for line in answer_head.split(b"\r\n")[1:])[FACTS_HEADER]
    rng = Random(6)

    def whole_booking() -> None:
        now = loop.time()
        booking = served.scheduler.place((ask,), now)[0]
        assert booking is not None
        booking.facts(0, 1000, now + 0.01)
        booking.answered(now + 0.01)
        booking.done(now + 0.01, 64)

    return {
        "openai.parse": lambda: parse(PATH, body),
        "chunk keys": lambda: chunk_keys(chat.canonical, start, 0, served.chunk_bytes, MOST_CHUNKS),
        "mirror look-up": lambda: served.cache.find(keys),
        "mirror booking": lambda: served.cache.book(served.live[0], keys, loop.time()),
        "place, facts, answered, done": whole_booking,
        "decode_facts": lambda: decode_facts(facts),
        "read_usage": lambda: read_usage(answer),
        "read_head": lambda: read_head(head, rng, forward_authorization=False),
        "tally, arrival and end": lambda: tallied(served.tally or Tally()),
        "tenant_of": lambda: router.keys.tenant_of(head[1][1]),
    }


def timed(piece: Callable[[], Any], calls: int) -> float:
    """µs of CPU a call."""
    began = time.process_time_ns()
    for _ in range(calls):
        piece()
    return (time.process_time_ns() - began) / calls / 1e3


async def measure(name: str, policy: str, workers: int, held: int, body_bytes: int, repeats: int) -> list[Row]:
    """The whole of a request, an empty handler behind the same connections, and the pieces."""

    async def at_once(exchange: Exchange) -> None:
        exchange.respond(200, [(b"content-type", b"application/json")], b"{}")

    with tempfile.TemporaryDirectory() as folder:
        router, served = world(policy, workers, held, Path(folder))
        requests = REQUESTS * 4096 // body_bytes
        loads = {"whole request": Load(router.server, body_bytes), "connection and an empty handler": Load(Server(at_once), body_bytes)}
        samples: dict[str, list[float]] = {}
        for repeat in range(repeats + 1):
            served.tally = Tally()  # a window's worth at a time
            found = {what: await load.run(requests) for what, load in loads.items()}
            found |= {what: timed(piece, requests) for what, piece in pieces(router, served, body_bytes).items()}
            for what, us in found.items():
                if repeat:
                    samples.setdefault(what, []).append(us)
        # Every request has been answered well, or the figures would be of something else.
        outcomes = router.figures.model(MODEL).outcomes
        assert sum(outcomes.values()) == next(iter(outcomes.values())) == requests * (repeats + 1), outcomes
    return [Row(f"{name}: {what}", "µs CPU", tuple(us)) for what, us in samples.items()]


async def run(repeats: int) -> list[Row]:
    warm_mirror_up()
    settle_memory()
    rows: list[Row] = []
    rows += await measure("4 KB, prefix-affinity", "prefix-affinity", 4, 0, 4096, repeats)
    rows += await measure("4 KB, target-misses", "target-misses", 8, HELD, 4096, repeats)
    rows += await measure("64 KB, prefix-affinity", "prefix-affinity", 4, 0, 65_536, repeats)
    return rows


def main() -> None:
    rows = run_loop(run(8 if "--quick" in sys.argv else REPEATS))
    show("Router in one process, no sockets", rows)
    print(keep("router_inprocess", rows))


if __name__ == "__main__":
    main()
