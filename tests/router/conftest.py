"""A small world for router tests: upstreams that behave as told, a real router in front of them, and proof that nothing is left."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from penstock_dataplane.client import Client, Origin, Response
from penstock_dataplane.loop import new_event_loop
from penstock_router.app import Router
from penstock_router.config import RouterConfig, Secrets, parse_endpoint
from penstock_router.scheduling import Booking

TIME_LIMIT_S = 60.0
CHAT = "/v1/chat/completions"
PARAMS = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]], "remote_engine_id": "e", "remote_host": "h", "remote_port": 1}


class Seen(NamedTuple):
    """A request as an upstream got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Behaviour = Callable[["Upstream", Seen, asyncio.StreamWriter], Awaitable[None]]


def whole(status: int, body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    """A response in one piece."""
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def piece(data: bytes) -> bytes:
    """One piece of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(text: str) -> dict[str, Any]:
    """A chunk of a streamed chat answer."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 4}}


async def answer(upstream: "Upstream", seen: Seen, writer: asyncio.StreamWriter) -> None:
    """What a good engine says: three words, streamed or whole, usage if asked; a prefill leg gets transfer parameters."""
    params = seen.body.get("kv_transfer_params") or {}
    extra: dict[str, Any] = {"kv_transfer_params": {**PARAMS, "remote_request_id": upstream.name}} if params.get("do_remote_decode") else {}
    if not seen.body.get("stream"):
        message = {"role": "assistant", "content": f"from {upstream.name}"}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE, **extra}
        body["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        writer.write(whole(200, json.dumps(body).encode(), *upstream.facts))
        return
    writer.write(STREAM_HEAD)
    for word in ("from", " ", upstream.name):
        writer.write(piece(event(delta(word))))
        await writer.drain()
    if (seen.body.get("stream_options") or {}).get("include_usage"):
        writer.write(piece(event({**delta(""), "choices": [], "usage": USAGE})))
    writer.write(piece(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def says(data: bytes, *, close: bool = False) -> Behaviour:
    """Writes these very bytes, and then closes or does nothing more."""

    async def behave(upstream: "Upstream", seen: Seen, writer: asyncio.StreamWriter) -> None:
        if data:
            writer.write(data)
            await writer.drain()
        if close:
            writer.close()

    return behave


def refuses(reason: str) -> Behaviour:
    """503 with the worker's refusal."""
    return says(whole(503, b"{}", f"x-penstock-refuse: {reason}"))


def waits_for(event: asyncio.Event, then: Behaviour = answer) -> Behaviour:
    """Holds the answer back until told."""

    async def behave(upstream: "Upstream", seen: Seen, writer: asyncio.StreamWriter) -> None:
        await event.wait()
        await then(upstream, seen, writer)

    return behave


class Upstream:
    """An OpenAI-compatible server on a real socket. `plan` behaviours are used up one a POST, then `behaviour` stands."""

    def __init__(self, name: str, models: Sequence[dict[str, Any]] = ({"id": "m"},)) -> None:
        self.name = name
        self.models = list(models)
        self.behaviour: Behaviour = answer
        self.plan: list[Behaviour] = []
        self.seen: list[Seen] = []
        self.facts: tuple[str, ...] = ()
        self.pages: dict[str, Callable[[dict[str, str]], bytes]] = {}
        """GET path to a whole response, from the request's headers."""
        self.connections: set[asyncio.StreamWriter] = set()
        self.left = 0
        """Connections that the router closed while their request was being answered."""
        self.url = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> "Upstream":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def stop(self) -> None:
        """Die: no listener, no connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections.add(writer)
        try:
            while True:
                await self._one(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self.connections.discard(writer)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *rows = head.strip().split("\r\n")
        method, path, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET" and path in self.pages:
            writer.write(self.pages[path](headers))
            return
        if method == "GET":
            writer.write(whole(200, json.dumps({"object": "list", "data": self.models}).encode() if "models" in path else b"{}"))
            return
        seen = Seen(method, path, headers, json.loads(body))
        self.seen.append(seen)
        behave = self.plan.pop(0) if self.plan else self.behaviour
        behaving = asyncio.ensure_future(behave(self, seen, writer))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((behaving, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not behaving.done():
                self.left += 1
                raise ConnectionError("the router left")
            await behaving
            await writer.drain()
            if leaving.done():
                raise ConnectionError("the router left")
        finally:
            for one in (behaving, leaving):
                one.cancel()
            await asyncio.wait((behaving, leaving))


class Answer(NamedTuple):
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object, checked for its form."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def text(self) -> str:
        """The content of a whole or a streamed chat answer."""
        if self.headers["content-type"].startswith("application/json"):
            return self.json["choices"][0]["message"]["content"]
        return "".join(choice["delta"].get("content", "") for chunk in self.chunks for choice in chunk["choices"])

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The JSON events of a stream."""
        return [json.loads(line[6:]) for line in self.body.split(b"\n\n") if line.startswith(b"data: {")]


class World:
    """Upstreams, one router and a client, closed and counted at the end."""

    def __init__(self) -> None:
        self.upstreams: list[Upstream] = []
        self.client = Client()
        self.router: Router | None = None
        self.origin = Origin("http", "", 0)
        self.placed: list[Booking] = []

    async def upstream(self, name: str, *models: dict[str, Any]) -> Upstream:
        upstream = await Upstream(name, models or ({"id": "m"},)).start()
        self.upstreams.append(upstream)
        return upstream

    async def start_router(self, *endpoints: str, secrets: Secrets | None = None, **settings: Any) -> Router:
        """A router over these endpoints, written as on the command line."""
        given = tuple(parse_endpoint(one) for one in endpoints)
        settings = {"policy": "round-robin", "probe_s": 0.05, **settings}
        self.router = Router(RouterConfig(endpoints=given, port=0, **settings), secrets or Secrets(chunk_secret=1))
        host, port = await self.router.start()
        self.origin = Origin("http", host, port)
        return self.router

    async def open(self, path: str, body: bytes, headers: dict[str, str] | None = None, method: str = "POST") -> Response:
        """Send a request; the response when its head is in."""
        pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        return await self.client.request(self.origin, method, path, pairs, body)

    async def send(self, path: str, body: Any = b"", headers: dict[str, str] | None = None, method: str = "POST") -> Answer:
        """Send a request and read the whole answer."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = await self.open(path, raw, headers, method)
        data = await response.read()
        return Answer(response.status, {name.decode(): value.decode() for name, value in response.headers}, data)

    async def chat(self, content: str = "hello", *, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
        """One chat request."""
        return await self.send(CHAT, {"model": "m", "messages": [{"role": "user", "content": content}], **fields}, headers)

    async def until(self, condition: Callable[[], bool], what: str = "") -> None:
        """Poll until `condition` holds."""
        end_s = asyncio.get_running_loop().time() + TIME_LIMIT_S / 2
        while not condition():
            assert asyncio.get_running_loop().time() < end_s, f"never came true: {what}"
            await asyncio.sleep(0.005)

    def outcomes(self, model: str = "m") -> dict[str, int]:
        """Requests by outcome, those that happened."""
        assert self.router is not None
        return {outcome.value: n for outcome, n in self.router.figures.model(model).outcomes.items() if n}

    async def close(self) -> None:
        await self.client.aclose()
        if self.router is not None:
            router = self.router
            await self.until(lambda: router.server.exchanges == 0, "no exchange at work")
            assert router.figures.active == 0
            assert router.director._admission.active == 0
            await router.close()
            assert router.client.open_connections == 0
            assert router.server.connections == 0
        for upstream in self.upstreams:
            await upstream.stop()
        await self.until(lambda: len(asyncio.all_tasks()) == 1, "no task left")


def open_sockets() -> int:
    """Sockets this process holds."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            count += str(link.readlink()).startswith("socket:")
        except OSError:
            pass
    return count


Scenario = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], None]:
    """Plays an async scenario; fails if a booking, a request, a task, a connection or a socket is left, or a callback raised."""

    def run(scenario: Scenario) -> None:
        before = open_sockets()
        complaints: list[dict[str, Any]] = []
        bookings: list[Booking] = []
        released: set[int] = set()
        construct, done = Booking.__init__, Booking.done

        def note_booking(booking: Booking, *args: Any, **kwargs: Any) -> None:
            bookings.append(booking)
            construct(booking, *args, **kwargs)

        def note_done(booking: Booking, *args: Any, **kwargs: Any) -> None:
            released.add(id(booking))
            done(booking, *args, **kwargs)

        monkeypatch.setattr(Booking, "__init__", note_booking)
        monkeypatch.setattr(Booking, "done", note_done)

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            world = World()
            try:
                async with asyncio.timeout(TIME_LIMIT_S):
                    await scenario(world)
            finally:
                await world.close()

        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
        assert complaints == []
        placed = [booking for booking in bookings if booking.placement.reason != "unplaced"]  # else it was declined, and nothing booked
        assert [booking.placement for booking in placed if id(booking) not in released] == []
        assert open_sockets() <= before

    return run
