"""A way to the real API server on which watches can be made to fail: each fault as a client would meet it on the wire.

Tests give the operator its kubeconfig. Everything but the named fault passes unchanged.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from control_plane import ControlPlane

Fault = Callable[[web.StreamResponse, web.Request], Any]


def error_event(code: int, reason: str) -> Fault:
    """An ERROR event in the stream, then its end."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": f"made up: {reason}"}

    async def write(response: web.StreamResponse, request: web.Request) -> None:
        await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
        await response.write_eof()

    return write


async def garbage(response: web.StreamResponse, request: web.Request) -> None:
    """A line that is no JSON."""
    await response.write(b'{"type": "MODIFIED", "object": {"metadata": oops}}\n')
    await response.write_eof()


async def half_a_line(response: web.StreamResponse, request: web.Request) -> None:
    """The connection ends in the middle of an event."""
    await response.write(b'{"type":"ADDED","object":{"kind":"Pod","metadata":{"na')
    _abort(request)


async def reset(response: web.StreamResponse, request: web.Request) -> None:
    """The connection ends without a word."""
    _abort(request)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


class FaultyProxy:
    """A plain-HTTP proxy in a thread of its own. `break_watches` fails every open watch of a kind; `refuse` its next requests."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self._plane = plane
        self._loop = asyncio.new_event_loop()
        self._open: dict[str, set[asyncio.Queue[Fault]]] = {}
        self._refusals: dict[str, list[int]] = {}
        self.refused = 0
        self._up = threading.Event()
        self._ended = asyncio.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self._thread.start()
        assert self._up.wait(60)
        self.kubeconfig = folder / "proxied.kubeconfig"
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        user = {"name": "u", "user": {"token": self._authorization.removeprefix("Bearer ")}}
        shown = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "x",
            "clusters": [cluster],
            "contexts": [context],
            "users": [user],
        }
        self.kubeconfig.write_text(json.dumps(shown), encoding="utf-8")

    @property
    def _authorization(self) -> str:
        return str(self._plane.client.headers["authorization"])

    def break_watches(self, plural: str, fault: Fault) -> int:
        """Fail all open watches of that kind; gives how many there were."""

        async def put() -> int:
            streams = self._open.get(plural, set())
            for stream in streams:
                stream.put_nowait(fault)
            return len(streams)

        return asyncio.run_coroutine_threadsafe(put(), self._loop).result(60)

    def refuse(self, plural: str, *codes: int) -> None:
        """Answer the next lists and watches of that kind with these statuses."""
        self._refusals[plural] = list(codes)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(60)

    async def _run(self) -> None:
        verify = self._plane.client_of("none")._transport._pool._ssl_context  # type: ignore[attr-defined]
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=verify, limit=0), auto_decompress=False) as self._session:
            runner = web.AppRunner(web.Application(client_max_size=1 << 26), access_log=None, shutdown_timeout=1.0)
            runner.app.router.add_route("*", "/{path:.*}", self._pass)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = runner.addresses[0][1]
            self._up.set()
            await self._ended.wait()
            await runner.cleanup()
            streams = asyncio.all_tasks() - {asyncio.current_task()}
            for stream in streams:
                stream.cancel()
            if streams:
                await asyncio.wait(streams)

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        plural = request.path.rsplit("/", 1)[1]
        if request.method == "GET" and self._refusals.get(plural):
            self.refused += 1
            code = self._refusals[plural].pop(0)
            return web.json_response({"kind": "Status", "code": code, "message": "made up"}, status=code)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "content-length")}
        body = await request.read()
        async with self._session.request(request.method, self._plane.url + request.path_qs, headers=headers, data=body or None) as answer:
            if "watch" not in request.query:
                return web.Response(body=await answer.read(), status=answer.status, headers={"content-type": answer.content_type})
            response = web.StreamResponse(status=answer.status, headers={"content-type": answer.content_type})
            await response.prepare(request)
            await self._stream(plural, request, answer, response)
            return response

    async def _stream(self, plural: str, request: web.Request, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        faults: asyncio.Queue[Fault] = asyncio.Queue()
        self._open.setdefault(plural, set()).add(faults)
        failing = asyncio.ensure_future(faults.get())
        try:
            while True:
                reading = asyncio.ensure_future(answer.content.readany())
                await asyncio.wait((reading, failing), return_when=asyncio.FIRST_COMPLETED)
                if failing.done():
                    reading.cancel()
                    return await failing.result()(response, request)
                piece = reading.result()
                if not piece:
                    return None
                await response.write(piece)
        except (ConnectionError, aiohttp.ClientError):
            return None  # either side has gone
        finally:
            failing.cancel()
            self._open[plural].discard(faults)
