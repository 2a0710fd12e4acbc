"""The server with clients that are not ours (httpx, curl), with a mounted app, and on a unix socket."""

import asyncio
import subprocess
from collections.abc import Callable
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from penstock_dataplane.server import Exchange

Play = Callable[[Callable[[Any], Any]], None]
POST = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b"


async def echo(exchange: Exchange) -> None:
    """Answers method, path, query and body, so that a mix-up shows."""
    r = exchange.request
    text = b"%b %b %b|%b" % (r.method.encode(), r.path.encode(), r.query, r.body)
    exchange.respond(200, [(b"content-type", b"text/plain")], text)


async def stream_three(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/event-stream")])
    for number in range(3):
        exchange.write(b"data: %d\n\n" % number)
        await asyncio.sleep(0)
    exchange.finish()


def test_httpx_and_curl_read_what_we_send(play: Play) -> None:
    """Two clients that are not ours: unary, streamed, large bodies both ways, h2c upgrade wishes, Expect."""

    async def scenario(world: Any) -> None:
        async def handle(exchange: Exchange) -> None:
            await (stream_three if exchange.request.path == "/v1/stream" else echo)(exchange)

        origin = await world.serve(handle)
        large = b"z" * 3_000_000
        async with httpx.AsyncClient(base_url=str(origin), timeout=60) as client:
            assert (await client.post("/v1/x?q=1", content=b"abc")).content == b"POST /v1/x q=1|abc"
            assert (await client.get("/v1/stream")).text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
            assert (await client.post("/v1/x", content=large)).content == b"POST /v1/x |" + large

            async def pieces() -> Any:
                for _ in range(10):
                    yield b"p" * 1000

            assert (await client.post("/v1/x", content=pieces())).content == b"POST /v1/x |" + b"p" * 10_000
        url = f"{origin}/v1/x"

        async def curl(*args: str, data: bytes = b"") -> bytes:
            command = ["curl", "-sS", "--max-time", "50", *args]
            process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            return (await process.communicate(data))[0]

        assert await curl(f"{origin}/v1/stream") == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
        assert await curl("--http2", "-d", "abc", url) == b"POST /v1/x |abc"
        assert await curl("-H", "Expect: 100-continue", "--data-binary", "@-", url, data=large) == b"POST /v1/x |" + large
        assert await curl("-T", "-", url, data=b"put") == b"PUT /v1/x |put"
        assert await curl("--http1.0", "-d", "abc", url) == b"POST /v1/x |abc"
        assert b"HTTP/1.1 200 OK" in await curl("-I", url)

    play(scenario)


def test_paths_outside_the_prefixes_go_to_the_app(play: Play) -> None:
    """FastAPI on the same port: JSON, 404, streaming with a client that leaves, path and query unharmed."""
    stopped = asyncio.Event()

    async def scenario(world: Any) -> None:
        app = FastAPI()

        @app.get("/items/{name}")
        async def item(name: str, q: str = "") -> dict[str, str]:
            return {"name": name, "q": q}

        @app.post("/echo")
        async def echo_body(body: dict[str, int]) -> dict[str, int]:
            return body

        @app.get("/endless")
        async def endless() -> StreamingResponse:
            async def pieces() -> Any:
                try:
                    while True:
                        yield b"x" * 1000
                finally:
                    stopped.set()

            return StreamingResponse(pieces())

        origin = await world.serve(echo, app=app)
        (server,) = world.servers
        async with httpx.AsyncClient(base_url=str(origin), timeout=60) as client:
            assert (await client.get("/items/a%20b?q=%C3%A9")).json() == {"name": "a b", "q": "é"}
            assert (await client.post("/echo", json={"a": 1})).json() == {"a": 1}
            assert (await client.get("/none")).status_code == 404
            assert (await client.head("/items/a")).status_code == 405
            assert (await client.post("/v1/x", content=b"a")).content == b"POST /v1/x |a"
        peer = await world.peer(origin)
        peer.send(b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n")
        await peer.reader.readexactly(5000)
        peer.reset()
        await world.until(stopped.is_set, "the app hears of the departure")
        await world.until(lambda: server.exchanges == 0, "the app's run ends")

    play(scenario)


def test_without_an_app_other_paths_are_404(play: Play) -> None:
    """And `render_error` decides how the server's own errors look."""

    async def scenario(world: Any) -> None:
        origin = await world.serve(
            echo, render_error=lambda status, message: ([(b"content-type", b"application/json")], b'{"code":%d}' % status)
        )
        peer = await world.peer(origin)
        peer.send(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
        status, head, body = await peer.response()
        assert (status, body) == (404, b'{"code":404}')
        assert b"content-type: application/json" in head

    play(scenario)


def test_a_process_may_listen_on_a_unix_socket(play: Play, tmp_path: Any) -> None:
    """The same server behind a path instead of a port."""

    async def scenario(world: Any) -> None:
        await world.serve(echo)
        (server,) = world.servers
        await server.start_unix(str(tmp_path / "s"))
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "s"))
        async with httpx.AsyncClient(transport=transport, base_url="http://h") as client:
            assert (await client.post("/v1/x", content=b"a")).content == b"POST /v1/x |a"

    play(scenario)
