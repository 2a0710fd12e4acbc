"""ServerEngine: an engine that is an OpenAI server of its own behind the engine contract, as our child or adopted.

The worker's host uses it through the Engine Protocol. Calls go to the engine over HTTP as the client wrote them; KV events come
over ZeroMQ; health and metrics are asked once a second. It notices a core that died behind a live HTTP port. In what engines
differ is asked of the dialect.
"""

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from penstock_core.endpoint import Load
from penstock_core.errors import Refused, TransferFailed
from penstock_dataplane.client import Client, ClientLimits, Origin
from penstock_dataplane.errors import DeadlineExceeded, UpstreamError

from penstock_worker.engine import BlockEvent, EngineAnswer, EngineCall, EngineInfo, Handover, Rendering
from penstock_worker.engines.server.answers import EngineFailed, ServerAnswer
from penstock_worker.engines.server.bodies import with_salt
from penstock_worker.engines.server.chat_template import CannotRender
from penstock_worker.engines.server.child import Child
from penstock_worker.engines.server.config import ServerConfig
from penstock_worker.engines.server.dialect import Dialect, Ports, Wish
from penstock_worker.engines.server.hub import cached_folder
from penstock_worker.engines.server.ports import free_ports
from penstock_worker.engines.server.rendering import PromptRenderer, renderer_of
from penstock_worker.engines.server.scrape import Gauges
from penstock_worker.engines.server.subscriber import Subscriber
from penstock_worker.worker_host import StartFailed

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_LOOK_TIMEOUT_S = 5.0
_SAID_EVERY_S = 10.0
_MOST_MISSES = 3
"""Looks that may fail in a row; a child that has ended is noticed at the first."""
_MOST_SILENT = 12
"""Looks in a row that may get no answer in time: a minute, as on a machine with too much to do; the core may be alive."""
_METRICS_BYTES = 16 << 20
_JSON = (b"content-type", b"application/json")


class ServerEngine:
    """One engine. State: what runs, by call; the last scrape."""

    def __init__(self, config: ServerConfig, dialect: Dialect) -> None:
        self.config = config
        self.phases: dict[str, float] = {}
        """Seconds from the start to the end of each phase: process, weights, warm_up, first_token."""
        self.subscriber: Subscriber | None = None
        self.gauges = Gauges()
        self._dialect = dialect
        self._child: Child | None = None
        self._ports: Ports | None = None
        self._client: Client | None = None
        self._origin: Origin | None = None
        self._renderer: PromptRenderer | None = None
        self._info: EngineInfo | None = None
        self._folder: str | None = None
        self._events = ("", "")
        self._listener: Callable[[Sequence[BlockEvent]], None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._died: asyncio.Future[str] | None = None
        self._metrics_text = ""
        self._waiting: dict[object, int] = {}  # call → its prompt's tokens, about
        self._running = 0
        self._handed_over: dict[object, tuple[float, int]] = {}  # prefill that a decode may fetch → (end, tokens)

    async def start(self) -> EngineInfo:
        """See Engine.start. Raises StartFailed."""
        if self._client is not None:
            raise RuntimeError("the engine has been started already")
        began_s = time.monotonic()
        self._died = asyncio.get_running_loop().create_future()
        self._client = Client(ClientLimits(max_connections_per_origin=4_096))
        try:
            self._events = self._launch()
            self._renderer = await asyncio.to_thread(self._read_folder)
            await self._until_healthy(began_s)
            if self._renderer is None and self.config.hub:
                self._renderer = await asyncio.to_thread(self._read_folder)
            exact = self._renderer is not None and bool(self._events[0])
            self._info = await self._dialect.info(self.config, self._get, self._ports, exact=exact)
            await self._first_token()
            await self._scrape()
        except BaseException:
            await self.stop()
            raise
        self.phases = {**(self._child.phases if self._child is not None else {}), "first_token": time.monotonic() - began_s}
        self._watching = asyncio.get_running_loop().create_task(self._watch(), name="engine watch")
        self._subscribe()
        log.info("engine up", extra={"facts": {"phases_s": {name: round(at_s, 2) for name, at_s in self.phases.items()}}})
        return self._info

    async def died(self) -> str:
        """See Engine.died."""
        if self._died is None:
            raise RuntimeError("the engine has not been started")
        return await asyncio.shield(self._died)

    async def stop(self) -> None:
        """See Engine.stop."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait((watching,))
        if self.subscriber is not None:
            await self.subscriber.stop()
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
        if self._child is not None:
            await self._child.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def answer(self, call: EngineCall) -> EngineAnswer:
        """See Engine.answer."""
        if self._client is None or self._origin is None or self._info is None or (self._died is not None and self._died.done()):
            raise Refused("epoch" if self._info is not None else "draining")
        wish = self._dialect.wish(call.body, self.config)
        if not wish.served:
            raise Refused("epoch")
        if len(self._waiting) >= self.config.max_waiting:
            raise Refused("full")
        token = object()
        self._waiting[token] = len(call.body) // 4
        try:
            return await self._ask(self._client, self._origin, call, wish)
        finally:
            del self._waiting[token]

    def render(self, path: str, body: bytes) -> Rendering | None:
        """See Engine.render."""
        if self._renderer is None:
            return None
        try:
            return self._renderer.render(path, body)
        except CannotRender as error:
            log.debug("a prompt is not followed: %s", error)
            return None

    def load(self) -> Load:
        """See Engine.load: counts are our own and of this moment, the KV of the last scrape."""
        total = self._info.kv_total_tokens if self._info is not None else 0
        return Load(
            running=self._running,
            waiting=len(self._waiting),
            prefill_tokens=sum(self._waiting.values()),
            kv_used_tokens=round(self.gauges.kv_usage_ratio * total),
            kv_total_tokens=total,
        )

    def handover(self) -> Handover:
        """See Engine.handover: a finished prefill counts as unclaimed until the engine's own KV usage is 0, or its claim has run out."""
        now_s = time.monotonic()
        open_s = self.config.claim_seconds
        self._handed_over = {one: (at_s, tokens) for one, (at_s, tokens) in self._handed_over.items() if now_s - at_s < open_s}
        return Handover(
            unclaimed_tokens=sum(tokens for _, tokens in self._handed_over.values()),
            expired=int(self.gauges.expired),
            pulled_bytes=int(self.gauges.pulled_bytes),
        )

    def on_block_events(self, listener: Callable[[Sequence[BlockEvent]], None]) -> None:
        """See Engine.on_block_events."""
        if self._listener is not None:
            raise RuntimeError("block events have a listener already; allowed: one")
        self._listener = listener
        self._subscribe()

    def metrics_text(self) -> str:
        """See Engine.metrics_text: as of the last scrape."""
        return self._metrics_text

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _ask(self, client: Client, origin: Origin, call: EngineCall, wish: Wish) -> ServerAnswer:
        """One call, up to its first output."""
        try:
            body = with_salt(call.body, call.salt) if call.salt else call.body
        except msgspec.DecodeError:
            body = call.body  # the engine says what is wrong with it
        headers = [_JSON, (b"x-request-id", call.request_id.encode())]
        answer: ServerAnswer | None = None
        try:
            response = await client.request(origin, "POST", call.path, headers, body)
            self._running += 1
            answer = ServerAnswer(response, self._ended)
            await answer.first_output()
        except UpstreamError as error:
            await _give_up(answer)
            raise self._failed(wish, error.detail) from None
        except EngineFailed as error:
            await _give_up(answer)
            raise self._failed(wish, str(error)) from None
        except BaseException:
            await _give_up(answer)
            raise
        if answer.status >= 500:
            await _give_up(answer)
            raise self._failed(wish, f"{self._dialect.name} answered {answer.status}")
        if wish.hands_over and answer.status == 200:
            tokens = answer.facts.prompt_tokens if answer.facts is not None else len(call.body) // 4
            self._handed_over[object()] = (time.monotonic(), tokens)
        return answer

    def _failed(self, wish: Wish, why: str) -> Refused | TransferFailed:
        """Before a first output nothing is lost: prefill again where KV was to be fetched, else try another worker."""
        log.warning("a call failed in the engine", extra={"facts": {"why": why}})
        if self._child is not None and self._child.ended:
            self._die(self._child.why())
        return TransferFailed(why) if wish.pulls else Refused("epoch")

    def _subscribe(self) -> None:
        """Listen once the engine runs and somebody wants to hear; what came before is asked for."""
        if self._listener is not None and self._info is not None and self._events[0] and self.subscriber is None:
            self.subscriber = Subscriber(*self._events, self._listener)
            self.subscriber.start()

    def _ended(self) -> None:
        self._running -= 1

    def _launch(self) -> tuple[str, str]:
        """Start the child, or take the address to adopt; gives where its KV events are heard and replayed."""
        config = self.config
        if config.adopt_url:
            self._origin = Origin.parse(config.adopt_url)
            return config.adopt_events, config.adopt_replay
        (http,) = free_ports("127.0.0.1", 1)
        (side,) = (config.side_port,) if config.side_port else free_ports(config.side_host, 1)
        self._folder = tempfile.mkdtemp(prefix="penstock-engine-")  # its sockets: nobody else may open this folder
        ports = self._ports = Ports(http, side, f"ipc://{self._folder}/events", f"ipc://{self._folder}/replay")
        launch = self._dialect.launch(config, ports)
        self._origin = Origin("http", launch.host, http)
        self._child = Child(self._dialect.name, self._dialect.phases, config.log_path)
        self._child.start(config.python, launch.words, launch.environment)
        return ports.events, ports.replay

    def _read_folder(self) -> PromptRenderer | None:
        """What lays prompts out, from the model's folder; that of a hub's model may be there only once the engine has fetched it."""
        if self.config.hub and not self.config.folder:
            found = cached_folder(self.config.hub, self.config.revision, {**os.environ, **self.config.env})
            self.config = msgspec.structs.replace(self.config, folder=str(found or ""))
        if not self.config.folder:
            log.info("no folder of the model is known so far; without one this worker's prefix cache stays unknown")
            return None
        try:
            return renderer_of(Path(self.config.folder))
        except CannotRender as error:
            log.warning("prompts cannot be laid out, so this worker's prefix cache stays unknown: %s", error)
            return None

    async def _until_healthy(self, began_s: float) -> None:
        said_s = began_s
        while True:
            if time.monotonic() - said_s >= _SAID_EVERY_S:
                said_s = time.monotonic()
                done = ", ".join(self._child.phases) if self._child is not None else ""
                log.info(
                    "the engine is not healthy yet",
                    extra={"facts": {"seconds": round(said_s - began_s), "done": done, "at": str(self._origin)}},
                )
            if self._child is not None and self._child.ended:
                raise StartFailed(self._child.why())
            if await self._healthy():
                return
            if time.monotonic() - began_s > self.config.start_s:
                raise StartFailed(f"{self._dialect.name} is not healthy after {self.config.start_s:g} s (engine_start_s)")
            await asyncio.sleep(0.1)

    async def _first_token(self) -> None:
        """One token, so that whatever is made at first use is made before the first client comes."""
        asked = self._dialect.first_request(self.config)
        if asked is None:
            return
        path, body = asked
        client, origin = self._connected()
        deadline_s = asyncio.get_running_loop().time() + self.config.start_s
        try:
            response = await client.request(origin, "POST", path, [_JSON], body, deadline_s=deadline_s)
            said = await response.read(1 << 20)
        except UpstreamError as error:
            raise StartFailed(f"{self._dialect.name} gave no first token: {error.detail}") from None
        if response.status != 200:
            raise StartFailed(f"{self._dialect.name} answered its first request with {response.status}: {said[:300]!r}")

    async def _watch(self) -> None:
        """Once a second: is it healthy, and what do its metrics say. Ends when the engine is dead."""
        misses = silent = 0
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                healthy = await self._healthy()
                silent = silent + 1 if healthy is None else 0
                misses = misses + 1 if healthy is False else 0 if healthy else misses
                if self._child is not None and self._child.ended:
                    return self._die(self._child.why())
                if misses >= _MOST_MISSES or silent >= _MOST_SILENT:
                    how = f"failed {misses} times" if misses >= _MOST_MISSES else f"not answered {silent} times"
                    return self._die(f"{self._dialect.name}'s /health has {how} in a row")
                if healthy:
                    await self._scrape()
            except Exception:  # a task's top
                log.exception("looking after the engine failed")

    def _die(self, why: str) -> None:
        if self._died is not None and not self._died.done():
            log.error("the engine is dead", extra={"facts": {"why": why}})
            self._died.set_result(why)

    async def _scrape(self) -> None:
        began_s, idle = time.monotonic(), not self._running and not self._waiting
        try:
            text = (await self._get("/metrics")).decode("utf-8", "replace")
        except UpstreamError:
            return
        self.gauges = self._dialect.gauges(text)
        self._metrics_text = self._dialect.metrics(text, self.gauges)
        if idle and not self.gauges.running and not self.gauges.kv_usage_ratio:
            self._handed_over = {one: entry for one, entry in self._handed_over.items() if entry[0] > began_s - _LOOK_S}

    async def _healthy(self) -> bool | None:
        """None: no answer in time."""
        try:
            await self._get("/health")
        except DeadlineExceeded:
            return None
        except UpstreamError:
            return False
        return True

    async def _get(self, path: str) -> bytes:
        """Raises UpstreamError, also for an answer that is not 200."""
        client, origin = self._connected()
        response = await client.request(origin, "GET", path, deadline_s=asyncio.get_running_loop().time() + _LOOK_TIMEOUT_S)
        body = await response.read(_METRICS_BYTES)
        if response.status != 200:
            raise UpstreamError(str(origin), f"{path} answered {response.status}")
        return body

    def _connected(self) -> tuple[Client, Origin]:
        if self._client is None or self._origin is None:
            raise RuntimeError("the engine is not started")
        return self._client, self._origin


async def _give_up(answer: ServerAnswer | None) -> None:
    if answer is not None:
        await answer.abort()
