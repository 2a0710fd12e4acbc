"""Fronts one engine over HTTP (protocol.md §3), keeps it registered, and drains it.

`assembly` builds a Host with its engine and the way to join the registry; `penstock worker` and the Ray actor run it. Bodies and
tokens go through `answering`; here are the small control paths, start, drain and stop. It knows no Redis and no Ray.
"""

import asyncio
import logging
import secrets as random_source
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from penstock_core.endpoint import Load, Role, StartUp, WorkerRecord
from penstock_core.errors import PenstockError
from penstock_core.kv_events import encode_state
from penstock_dataplane.exchange import Exchange
from penstock_dataplane.limits import ServerLimits
from penstock_dataplane.request_parser import Request
from penstock_dataplane.server import Server
from penstock_process.system import process_began_s

from penstock_worker.answering import JSON_TYPE, Answering, holds_token, openai_error, render_error
from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.engine import Engine, EngineInfo
from penstock_worker.kv_chain import ChainRules
from penstock_worker.kv_follow import KvFollower, Publishing
from penstock_worker.metrics import WorkerMetrics
from penstock_worker.state import WorkerState, encode_worker_state

log = logging.getLogger(__name__)

Join = Callable[[WorkerRecord, Callable[[], Load], WorkerMetrics], Awaitable[Publishing]]
"""Registers the record, reports the load with each renewal, and gives whom KV changes go to."""

_TEXT_TYPE = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_UNCLAIMED_POLL_S = 0.1


class CannotSwitch(PenstockError):
    """The worker cannot change its role; drain it and start another."""


class Host:
    """One worker. `start`, then `stop`; between them `switch` at will, `drain` once. State changes there and in the answers' counters."""

    def __init__(self, config: WorkerConfig, secrets: WorkerSecrets, engine: Engine, join: Join, *, epoch: int) -> None:
        self.config = config
        self.epoch = epoch
        self.url = ""
        self.drained = asyncio.Event()
        """Set once a drain has come to its end."""
        self._secrets = secrets
        self._engine = engine
        self._join = join
        self._metrics = WorkerMetrics(config.restarts)
        self._created = int(time.time())
        self._server = Server(
            self._serve,
            handler_prefixes=("/",),
            limits=ServerLimits(body_bytes=config.body_bytes, max_connections=config.connections),
            render_error=render_error,
        )
        self._info: EngineInfo | None = None
        self._start_up: StartUp | None = None
        self._answering: Answering | None = None
        self._follower: KvFollower | None = None
        self._publishing: Publishing | None = None
        self._draining: asyncio.Task[None] | None = None
        self._switching: asyncio.Task[None] | None = None

    async def start(self) -> WorkerRecord:
        """Listen, bring the engine up, register. `/health` says 503 until all of it is done. OSError if the port is taken."""
        self.url = self.config.url(*await self._server.start(self.config.listen_host, self.config.port))
        if not self._secrets.fleet_token:
            log.warning("no fleet token is set: /penstock/* answers on loopback only, salts are refused")
        listening_s = time.time()
        info = await self._engine.start()
        self._start_up = StartUp(began_s=process_began_s(), listening_s=listening_s, ready_s=time.time())
        record = self._record(info)
        self._metrics.watch_handover(self._engine.handover)
        self._publishing = await self._join(record, self.load, self._metrics)
        rules = ChainRules(self._secrets.chunk_secret, self.config.chunk_bytes, info.block_tokens)
        self._follower = KvFollower(self._engine, info, rules, self._publishing, inline_body_bytes=self.config.inline_body_bytes)
        self._metrics.watch_agreement(self._follower.agreement)
        self._answering = Answering(
            self._engine,
            info,
            self._follower,
            self._metrics,
            load=self.load,
            generation=record.kv_generation,
            fleet_token=self._secrets.fleet_token,
        )
        self._info = info
        facts = {"id": record.id, "url": self.url, "role": record.role.value, "pool": record.pool, "epoch": f"{self.epoch:016x}"}
        log.info("ready", extra={"facts": facts})
        return record

    def load(self) -> Load:
        """The engine's, with the host's own word on draining."""
        load = self._engine.load() if self.ready else Load()
        return msgspec.structs.replace(load, draining=True) if self.draining else load

    @property
    def draining(self) -> bool:
        """Whether it takes nothing new: it leaves, or changes its role, once it is empty."""
        return self._draining is not None or self._switching is not None

    @property
    def ready(self) -> bool:
        return self._info is not None

    def drain(self, on_drained: Callable[[], None] | None = None) -> None:
        """Refuse new requests, let running ones end, leave the registry, set `drained`. Twice is once."""
        if self._draining is None:
            if self._switching is not None:
                self._switching.cancel()
            if self._answering is not None:
                self._answering.draining = True
            self._draining = asyncio.get_running_loop().create_task(self._drain(), name="drain")
        if on_drained is not None:
            self._draining.add_done_callback(lambda _: on_drained())

    def switch(self, role: Role, pool: str) -> None:
        """Once running answers have ended and their KV has been fetched, serve in another role, with the cache as it is, under a new epoch.

        Raises CannotSwitch for an engine that cannot, and for a worker that is starting or leaving.
        """
        if self._info is None or self._draining is not None:
            raise CannotSwitch(f"the worker is {'starting' if self._info is None else 'draining'}; allowed: one that serves")
        if not self._info.switches_role:
            raise CannotSwitch(f"engine {self.config.engine} keeps the role it was started with; allowed: a new worker")
        if self._switching is not None:
            self._switching.cancel()  # the newest word holds
        elif (role, pool) == (self.config.role, self.config.pool):
            return
        if self._answering is not None:
            self._answering.draining = True
        self._switching = asyncio.get_running_loop().create_task(self._switch(role, pool), name="switch")

    async def died(self) -> str:
        """Returns, with the reason, once the engine can serve no longer though nobody stopped it."""
        return await self._engine.died()

    async def stop(self) -> None:
        """Leave the registry and end everything; what still runs is cut."""
        for task in (self._switching, self._draining):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))
        await self._server.close()
        if self._follower is not None:
            await self._follower.aclose()
        if self._publishing is not None:
            await self._publishing.leave()
        await self._engine.stop()

    def state(self) -> WorkerState:
        """What `GET /penstock/state` says."""
        config = self.config
        return WorkerState(
            id=config.id,
            model=config.model,
            role=config.role,
            pool=config.pool,
            url=self.url,
            epoch=f"{self.epoch:016x}",
            load=self.load(),
            draining=self.draining,
            drained=self.drained.is_set(),
            exchanges=self._answering.running if self._answering is not None else 0,
            profile=config.profile,
            generation=self._generation,
            restarts=config.restarts,
            exact=self._info is None or (self._info.exact and (self._follower is None or self._follower.agreement.exact)),
            start_up=self._start_up,
        )

    def _record(self, info: EngineInfo) -> WorkerRecord:
        return worker_record(self.config, info, self.url, self.epoch, self._start_up)

    @property
    def _generation(self) -> str:
        return self.config.kv_generation or (self._info.kv_generation if self._info is not None else "")

    async def _drain(self) -> None:
        """Answers first, then the KV that decode workers may still come for, then the registry."""
        begin_s = time.monotonic()
        cut = 0
        try:
            async with asyncio.timeout(self.config.drain_s):
                await self._emptied()
        except TimeoutError:
            cut = self._answering.running if self._answering is not None else 0
        if self._publishing is not None:
            await self._publishing.leave()
        self.drained.set()
        log.info("drained", extra={"facts": {"id": self.config.id, "seconds": round(time.monotonic() - begin_s, 3), "still_running": cut}})

    async def _emptied(self) -> None:
        """Until no answer runs and no finished prefill waits for its decode worker."""
        if self._answering is not None:
            await self._answering.idle.wait()
        while self._engine.handover().unclaimed_tokens:  # noqa: ASYNC110 -- engines that are servers of their own tell it when asked
            await asyncio.sleep(_UNCLAIMED_POLL_S)

    async def _switch(self, role: Role, pool: str) -> None:
        begin_s = time.monotonic()
        try:
            await self._emptied()
            await self._come_as(role, pool)
        except Exception:  # the task's top: it stays draining, and whoever runs it starts it anew
            log.exception("the role could not be changed")
            return
        self._switching = None
        facts = {"id": self.config.id, "role": role.value, "pool": pool, "seconds": round(time.monotonic() - begin_s, 3)}
        log.info("role changed", extra={"facts": facts})

    async def _come_as(self, role: Role, pool: str) -> None:
        """Leave as the old, come as the new. The chunks held go over in one turn of the loop, so that no change of theirs is lost."""
        assert self._info is not None and self._answering is not None  # noqa: S101 -- it serves
        assert self._publishing is not None and self._follower is not None  # noqa: S101 -- the same
        before = self._publishing
        await before.leave()
        self.config = msgspec.structs.replace(self.config, role=role, pool=pool)
        self.epoch = new_epoch()
        after = await self._join(self._record(self._info), self.load, self._metrics)
        self._follower.flush()
        after.publish(before.state().keys.tolist(), ())
        self._publishing = after
        self._follower.tell(after)
        self._answering.draining = False

    async def _serve(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.path.startswith("/v1/") and request.path != "/v1/models":
            if self._answering is None:
                return exchange.respond(503, [JSON_TYPE], openai_error(503, "the engine is starting"))
            return await self._answering.serve(exchange)
        if request.path.startswith("/penstock/") and not self._trusted(request):
            message = "x-penstock-token is not the fleet's" if self._secrets.fleet_token else "no fleet token is set: loopback only"
            return exchange.respond(403, [JSON_TYPE], openai_error(403, message))
        answers = {
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics_page,
            ("GET", "/v1/models"): self._models,
            ("GET", "/penstock/state"): self._state,
            ("GET", "/penstock/kv"): self._kv,
            ("POST", "/penstock/drain"): self._begin_drain,
            ("POST", "/penstock/role"): self._begin_switch,
        }
        answer = answers.get((request.method, request.path))
        if answer is not None:
            return answer(exchange)
        allowed = ", ".join(method for method, path in answers if path == request.path)
        status = 405 if allowed else 404
        message = f"method is {request.method}; allowed: {allowed}" if allowed else f"no such path: {request.path}"
        return exchange.respond(status, [JSON_TYPE], openai_error(status, message))

    def _trusted(self, request: Request) -> bool:
        if self._secrets.fleet_token:
            return holds_token(request, self._secrets.fleet_token)
        return request.peer.startswith(("127.", "::1:", "[::1]:"))

    def _health(self, exchange: Exchange) -> None:
        exchange.respond(200 if self.ready else 503, [_TEXT_TYPE], b"" if self.ready else b"starting\n")

    def _metrics_page(self, exchange: Exchange) -> None:
        exchange.respond(200, [_TEXT_TYPE], self._metrics.text(self._engine.metrics_text() if self.ready else ""))

    def _models(self, exchange: Exchange) -> None:
        names = () if self._info is None else (self._info.model, *self._info.adapters)
        rows = [{"id": name, "object": "model", "created": self._created, "owned_by": "penstock"} for name in names]
        exchange.respond(200, [JSON_TYPE], msgspec.json.encode({"object": "list", "data": rows}))

    def _state(self, exchange: Exchange) -> None:
        exchange.respond(200, [JSON_TYPE], encode_worker_state(self.state()))

    def _kv(self, exchange: Exchange) -> None:
        if self._publishing is None or self._follower is None:
            return exchange.respond(503, [JSON_TYPE], openai_error(503, "the engine is starting"))
        self._follower.flush()
        return exchange.respond(200, [(b"content-type", b"application/octet-stream")], encode_state(self._publishing.state()))

    def _begin_drain(self, exchange: Exchange) -> None:
        self.drain()
        exchange.respond(202, [JSON_TYPE], encode_worker_state(self.state()))

    def _begin_switch(self, exchange: Exchange) -> None:
        try:
            asked = _decode_switch(exchange.request.body)
        except msgspec.DecodeError as error:
            allowed = f'{{"role": one of {", ".join(Role)}, "pool": a name of up to 253 letters}}'
            return exchange.respond(400, [JSON_TYPE], openai_error(400, f"body is wrong ({error}); allowed: {allowed}"))
        try:
            self.switch(asked.role, asked.pool)
        except CannotSwitch as error:
            return exchange.respond(409, [JSON_TYPE], openai_error(409, str(error)))
        return exchange.respond(202, [JSON_TYPE], encode_worker_state(self.state()))


class SwitchAsked(msgspec.Struct, frozen=True):
    """Body of `POST /penstock/role`."""

    role: Role
    pool: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]


_decode_switch = msgspec.json.Decoder(SwitchAsked).decode


def worker_record(config: WorkerConfig, info: EngineInfo, url: str, epoch: int, start_up: StartUp | None = None) -> WorkerRecord:
    """What the worker registers as."""
    return WorkerRecord(
        id=config.id,
        url=url,
        role=config.role,
        pool=config.pool,
        model=config.model,
        epoch=epoch,
        profile=info.profile,
        kv_total_tokens=info.kv_total_tokens,
        block_tokens=info.block_tokens,
        max_model_tokens=info.max_model_tokens,
        kv_generation=config.kv_generation or info.kv_generation,
        connector=info.connector,
        connector_facts=info.connector_facts,
        adapters=info.adapters,
        capabilities=info.capabilities,
        exact=info.exact,
        start_up=start_up,
    )


def new_epoch() -> int:
    """Random 64 bits: another epoch is another process with an empty cache."""
    return random_source.randbits(64)
