"""Clients outside the cluster that keep a number of streams going, as well-written programs do, and note how each one ended.

A client keeps its connection and uses it again; a connection that the server closed between two requests is opened anew and the
request sent again, as HTTP asks of clients; a connection that nobody takes is tried a few times, and counted. Nothing else is tried
twice: every refusal, every broken answer is noted. Runs in a thread with an event loop of its own, while the test does things.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any

import httpx
import msgspec
from control_plane import wait_until
from penstock_worker.engines.sim.reference import reference_text

CHAT = "/v1/chat/completions"
STREAMS = 50
_HEADERS = {"content-type": "application/json", "x-penstock-explain": "1", "x-penstock-slo-ttft-ms": "2000"}
"""The target is more than the model's: one crowded machine is all nodes, and a request refused for being late would be a failed one."""
_PATIENCE_S = 240.0
_NOBODY, _LATE = -1, -2
_KNOCKS, _PAUSE_S = 4, 0.5
_WORDS = ["water", "river", "gate", "wheel", "pressure", "pipe", "turbine", "head", "sluice", "weir", "lock", "canal", "basin", "flow"]
_STALE = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""What an idle connection that the server has closed meanwhile ends in."""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How one request ended. Times are `time.monotonic()`."""

    body: bytes
    status: int = 0
    """0: the connection ended before an answer came; below 0: nobody took it, or no answer within the time."""
    text: str = ""
    done: bool = False
    """The answer came to its end mark."""
    error: dict[str, Any] | None = None
    """Of the error event or the error body."""
    broken: str = ""
    """How the connection failed."""
    placement: str = ""
    """The explain header."""
    refused: int = 0
    """How often nobody took the connection before somebody did; nothing had been sent then."""
    began_s: float = 0.0
    ended_s: float = 0.0

    @property
    def broke_off(self) -> bool:
        """The connection failed in the middle of the answer, without a word."""
        return self.status == 200 and bool(self.broken)

    @property
    def ok(self) -> bool:
        return self.status == 200 and self.done and self.error is None and not self.broken

    @property
    def told(self) -> bool:
        """It failed, and the client was told so by an error event in the stream."""
        return self.status == 200 and self.error is not None

    def worker(self, leg: str) -> str:
        """Id of the worker of one leg (`prefill`, `decode`)."""
        pairs = dict(pair.partition("=")[::2] for pair in self.placement.split(";"))
        return pairs.get(leg, "")

    def written_by(self, generations: Collection[str]) -> str | None:
        """The one generation whose KV foretells this text; None: the text is of none, or of a mixture."""
        return next((one for one in generations if self.text == reference_text(self.body, kv_generation=one)), None)


class StreamClients:
    """A context manager: the clients run inside it. `stop` lets running streams end and gives all endings."""

    def __init__(self, url: str, model: str, *, streams: int = STREAMS, tokens: tuple[int, int] = (40, 160), seed: int = 1) -> None:
        self._url = url
        self._model = model
        self._streams = streams
        self._tokens = tokens
        self._rng = random.Random(seed)
        self._endings: list[Ending] = []
        self._running = 0
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="stream clients", daemon=True)

    def __enter__(self) -> "StreamClients":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join(_PATIENCE_S)

    @property
    def finished(self) -> int:
        return len(self._endings)

    @property
    def running(self) -> int:
        """Requests that have had an answer's head and not its end."""
        return self._running

    def wait_under_way(self) -> None:
        """Until nine of ten clients have a stream that runs: then is the moment to do something."""
        wait_until("streams under way", lambda: self._healthy() and self._running >= 0.9 * self._streams)

    def wait_finished(self, more: int) -> None:
        """Until so many more requests have ended."""
        wanted = self.finished + more
        wait_until(f"{more} more endings", lambda: self._healthy() and self.finished >= wanted)

    def stop(self) -> Sequence[Ending]:
        """Begin no further request, wait for the running ones, and give all endings."""
        self._stopping.set()
        self._thread.join(_PATIENCE_S)
        assert not self._thread.is_alive(), f"{self._running} streams never ended"
        self._healthy()
        return tuple(self._endings)

    # -- in the thread

    def _healthy(self) -> bool:
        if self._failure is not None:
            raise self._failure
        return True

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as failure:  # noqa: BLE001 -- the thread's top: the test gets it
            self._failure = failure

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for number in range(self._streams):
                clients.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        async with httpx.AsyncClient(base_url=self._url, timeout=_PATIENCE_S, trust_env=False, limits=limits) as client:
            fresh = True
            while not self._stopping.is_set():
                body = self._made_body(number)
                refused = 0
                ending = await self._ask(client, body)
                if ending.status == 0 and not fresh:  # the kept connection had been closed: the same again on a new one
                    ending = await self._ask(client, body)
                while ending.status == _NOBODY and refused < _KNOCKS:
                    refused += 1
                    await asyncio.sleep(_PAUSE_S)
                    ending = await self._ask(client, body)
                ending = msgspec.structs.replace(ending, refused=refused)
                fresh = not ending.ok
                self._endings.append(ending)
                if not ending.ok:
                    await asyncio.sleep(_PAUSE_S)  # a refused client that comes back at once is not a good one

    def _made_body(self, number: int) -> bytes:
        """About 100 to 900 tokens of prompt; a client's prompts begin alike, so that there are prefix hits."""
        text = f"client {number}: " + " ".join(self._rng.choices(_WORDS, k=self._rng.randint(80, 700)))
        asked = {"model": self._model, "stream": True, "ignore_eos": True, "max_tokens": self._rng.randint(*self._tokens)}
        return msgspec.json.encode({**asked, "messages": [{"role": "user", "content": text}]})

    async def _ask(self, client: httpx.AsyncClient, body: bytes) -> Ending:
        began_s = time.monotonic()
        noted: dict[str, Any] = {}
        try:
            async with client.stream("POST", CHAT, content=body, headers=_HEADERS) as answer:
                noted |= {"status": answer.status_code, "placement": answer.headers.get("x-penstock-placement", "")}
                self._running += 1
                try:
                    await _read(answer, noted)
                finally:
                    self._running -= 1
        except _STALE as error:
            noted["broken"] = repr(error)
        except httpx.ConnectError as error:
            noted |= {"broken": repr(error), "status": _NOBODY}
        except httpx.HTTPError as error:  # no answer within the time
            noted |= {"broken": repr(error), "status": noted.get("status", _LATE)}
        return Ending(body=body, began_s=began_s, ended_s=time.monotonic(), **noted)


async def _read(answer: httpx.Response, noted: dict[str, Any]) -> None:
    if answer.status_code != 200:
        noted["error"] = msgspec.json.decode(await answer.aread())["error"]
        return
    pieces: list[str] = []
    noted["text"] = ""
    async for line in answer.aiter_lines():
        if line == "data: [DONE]":
            noted["done"] = True
        elif line.startswith("data: {"):
            event = msgspec.json.decode(line[6:])
            noted["error"] = event.get("error", noted.get("error"))
            pieces += [choice["delta"].get("content") or "" for choice in event.get("choices", ())]
    noted["text"] = "".join(pieces)


def failures(endings: Sequence[Ending], but: Callable[[Ending], bool] = lambda ending: False) -> list[str]:
    """A line for each request that did not end well, apart from those that `but` expects."""
    return [
        f"{ending.status} {ending.error or ''} {ending.broken} after {len(ending.text)} characters, {ending.placement}"
        for ending in endings
        if not ending.ok and not but(ending)
    ]
