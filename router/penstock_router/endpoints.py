"""Which models are served, by which live endpoints, and what has been learned about each model.

The director resolves a request's `model` here; sources (`given`, `registered`) tell of endpoints that come and go; dispatch
tells of endpoints that it could not reach, which stay out until a probe succeeds. No bodies, no policies.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

from penstock_core import compiled_hash
from penstock_core.endpoint import Endpoint, Role, WorkerRecord
from penstock_core.slo import DEFAULT_SLO, Slo
from penstock_dataplane.client import Client, Origin
from penstock_dataplane.errors import UpstreamError

from penstock_router.admission.claim import LineLimits
from penstock_router.admission.line import Line
from penstock_router.fitted import ClassState
from penstock_router.length_classes import LengthClasses
from penstock_router.metrics import Figures
from penstock_router.prefixes import PrefixCache
from penstock_router.scheduling import Options, Scheduler
from penstock_router.tally import Tally
from penstock_router.turn import Turn

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 1.0
SUSPECT_PROBE_S = 0.25
_FRESH_S = 2.0
_FORGET = 0.98


class TokenRatio:
    """Tokens per byte of canonical prompt, learned from what workers count; the last 50 prompts or so weigh in, by length."""

    __slots__ = ("_bytes", "_tokens", "value")

    def __init__(self, start: float = 0.25) -> None:
        self._bytes, self._tokens = 4096.0, 4096.0 * start
        self.value = start

    def learn(self, prompt_bytes: int, prompt_tokens: int) -> None:
        """A prompt of so many canonical bytes was so many tokens; counts of 0 teach nothing."""
        if prompt_bytes > 0 and prompt_tokens > 0:
            self._bytes = self._bytes * _FORGET + prompt_bytes
            self._tokens = self._tokens * _FORGET + prompt_tokens
            self.value = self._tokens / self._bytes


class Prober:
    """Asks endpoints whether they are alive."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def alive(self, url: str) -> bool:
        """GET /health is 2xx; where a server has no such path, GET /v1/models is."""
        status = await self._status(url, "/health")
        if status == 404:
            status = await self._status(url, "/v1/models")
        return status is not None and 200 <= status < 300

    async def _status(self, url: str, path: str) -> int | None:
        deadline_s = asyncio.get_running_loop().time() + PROBE_TIMEOUT_S
        try:
            response = await self._client.request(Origin.parse(url), "GET", path, deadline_s=deadline_s)
            await response.read(1 << 20)
        except UpstreamError:
            return None
        return response.status


class Served:
    """One served model. State: the source's snapshot and the suspects; `live` is the one without the other."""

    def __init__(self, name: str, *, scheduler: Scheduler, cache: PrefixCache, chunk_bytes: int, slo: Slo, ours: bool, turn: Turn) -> None:
        self.name = name
        self.scheduler = scheduler
        self.cache = cache
        self.chunk_bytes = chunk_bytes
        self.slo = slo
        self.ours = ours
        """Penstock workers, found in the registry: they get the fleet's token; servers given by hand never do."""
        self.turn = turn
        self.ratio = TokenRatio()
        self.tally: Tally | None = None
        """Where requests are noted for autoscalers; None: nobody is told of them."""
        self.live: tuple[Endpoint, ...] = ()
        self.serving = False
        """Some endpoint can take a whole request, or two can take it together."""
        self.came = asyncio.Event()
        """Set while `serving`."""
        self.wakeable = False
        """An autoscaler starts a first replica when requests wait for one."""
        self.held = 0
        """Requests that wait for a first replica."""
        self.adapters: frozenset[str] = frozenset()
        self.answered_s: dict[str, float] = {}
        """Endpoint id to when it last answered a request (loop time): liveness while Redis is away."""
        self.reported_s: dict[str, float] = {}
        """Endpoint id to when a load of its answers was last passed on."""
        self.index: IndexView = NoIndex()
        self._snapshot: dict[str, Endpoint] = {}
        self._suspects: dict[str, int] = {}  # endpoint id → epoch under which it could not be reached

    def set_endpoints(self, endpoints: Iterable[Endpoint], now: float) -> None:
        """The source's new snapshot, live and draining ones. A restarted worker (another epoch) is no suspect any more."""
        snapshot = {one.id: one for one in endpoints}
        for gone in self._snapshot.keys() - snapshot.keys():
            self.cache.drop(gone)
            self.answered_s.pop(gone, None)
            self.reported_s.pop(gone, None)
        self._snapshot = snapshot
        self._suspects = {i: epoch for i, epoch in self._suspects.items() if i in snapshot and snapshot[i].record.epoch == epoch}
        self._apply(now)

    def suspect(self, endpoint: Endpoint, now: float) -> bool:
        """It could not be reached: out, until `clear`. False if it is out already or unknown by now."""
        known = self._snapshot.get(endpoint.id)
        if known is None or known.record.epoch != endpoint.record.epoch or endpoint.id in self._suspects:
            return False
        self._suspects[endpoint.id] = endpoint.record.epoch
        self._apply(now)
        return True

    def is_suspect(self, endpoint: Endpoint) -> bool:
        return self._suspects.get(endpoint.id) == endpoint.record.epoch

    def clear(self, endpoint: Endpoint, now: float) -> None:
        """A probe succeeded: in again."""
        if self.is_suspect(endpoint):
            del self._suspects[endpoint.id]
            self._apply(now)

    def live_by_role(self) -> dict[str, int]:
        roles = {Role.DECODE.value: 0}  # nothing that decodes is a figure too: an alert asks for it
        for one in self.live:
            roles[one.record.role.value] = roles.get(one.record.role.value, 0) + 1
        return roles

    @property
    def profiles(self) -> Sequence[ClassState]:
        return self.scheduler.profiles.states()

    @property
    def lengths(self) -> LengthClasses:
        return self.scheduler.lengths

    @property
    def waiting(self) -> int:
        """Requests that wait for room or for a first replica."""
        return self.turn.waiting + self.held

    @property
    def chunks(self) -> int:
        return self.index.chunks

    @property
    def lag_s(self) -> float | None:
        return self.index.lag_s

    @property
    def reloads(self) -> dict[str, int]:
        return self.index.reloads

    def _apply(self, now: float) -> None:
        self.live = tuple(one for one in self._snapshot.values() if one.id not in self._suspects)
        if self.live or not self.wakeable:  # asleep it still has the adapters it had
            self.adapters = frozenset(name for one in self.live for name in one.record.adapters)
        there = [one.record for one in self.live if not one.draining]
        divided = any(one.role is Role.PREFILL for one in there) and any(one.role.decodes for one in there)
        self.serving = divided or any(one.serves_whole for one in there)
        if self.serving:
            self.came.set()
        else:
            self.came.clear()
        self.scheduler.set_endpoints(self.live, now)


class IndexView:
    """What metrics and readiness ask of a model's index."""

    warm: bool
    chunks: int
    lag_s: float | None
    reloads: dict[str, int]


class NoIndex(IndexView):
    """A model whose endpoints were given by hand."""

    warm = True
    chunks = 0
    lag_s = None
    reloads: dict[str, int] = {}  # noqa: RUF012  never written


class Directory:
    """All served models of this router, by name and by adapter."""

    def __init__(self, *, policy: str, options: Options, limits: LineLimits, figures: Figures, prober: Prober, rng: Random) -> None:
        self._policy, self._options, self._limits = policy, options, limits
        self._figures = figures
        self._rng = rng
        self.more_coming: Callable[[], bool] = lambda: True
        """Whether requests have come in that have not begun; set by `app`, which knows the server."""
        self.all_known: Callable[[], bool] = lambda: True
        """Whether it is known which models there are; set by the source that looks for them."""
        self._probing: set[asyncio.Task[None]] = set()
        self.prober = prober
        self.models: dict[str, Served] = {}
        figures.gauges = self.models.values
        figures.conflicts = lambda: sum(each.scheduler.conflicts for each in self.models.values())

    def add(self, name: str, cache: PrefixCache, *, chunk_bytes: int, slo: Slo = DEFAULT_SLO, ours: bool = False) -> Served:
        """A model that is served from now on, with no endpoints yet. ValueError if it is already there."""
        if name in self.models:
            raise ValueError(f"model {name!r} is served from two sources; allowed: the registry or endpoints given by hand")
        scheduler = self._warm_scheduler()
        turn = Turn(scheduler, Line(scheduler, self._limits, name), self._figures.decision, self._more_coming)
        served = Served(name, scheduler=scheduler, cache=cache, chunk_bytes=chunk_bytes, slo=slo, ours=ours, turn=turn)
        self.models[name] = served
        return served

    def remove(self, name: str) -> None:
        """A model that is served no more; requests under way keep what they hold."""
        del self.models[name]

    def warm_up(self) -> None:
        """Compile what placing needs, seconds the first time, so that a model found later does not stop the requests of others."""
        self._warm_scheduler()

    def _warm_scheduler(self) -> Scheduler:
        scheduler = Scheduler(self._policy, rng=self._rng, options=self._options)
        scheduler.warm_up()
        compiled_hash.warm_up()
        return scheduler

    def _more_coming(self) -> bool:
        return self.more_coming()

    def resolve(self, name: str) -> tuple[Served, str] | None:
        """The served model behind a request's `model`, and the adapter if the name is one's; None for an unknown name."""
        served = self.models.get(name)
        if served is not None:
            return served, ""
        for served in self.models.values():
            if name in served.adapters:
                return served, name
        return None

    def listing(self) -> Iterator[tuple[str, str | None]]:
        """Every model and adapter with a live endpoint or one that comes when asked for, and for an adapter the model below it."""
        for served in self.models.values():
            if served.live or served.wakeable:
                yield served.name, None
                for adapter in sorted(served.adapters):
                    yield adapter, served.name

    @property
    def ready(self) -> bool:
        """Some model has a live endpoint or gets one when asked for, and every index that is followed has been read."""
        return self.warm and any(each.live or each.wakeable for each in self.models.values())

    @property
    def warm(self) -> bool:
        """It is known which models there are, and every index that is followed has been read."""
        return self.all_known() and all(each.index.warm for each in self.models.values())

    def unreachable(self, served: Served, endpoint: Endpoint, detail: str) -> None:
        """No connection could be made: keep requests away from it and look again until it answers."""
        if served.suspect(endpoint, asyncio.get_running_loop().time()):
            log.warning("endpoint out", extra={"facts": {"endpoint": endpoint.id, "url": endpoint.record.url, "why": detail}})
            task = asyncio.get_running_loop().create_task(self._await_return(served, endpoint))
            self._probing.add(task)
            task.add_done_callback(self._probing.discard)

    async def is_alive(self, served: Served, record: WorkerRecord) -> bool:
        """Whether a worker lives, judged without its lease: by an answer just now, else by a probe."""
        now = asyncio.get_running_loop().time()
        if now - served.answered_s.get(record.id, -_FRESH_S) < _FRESH_S:
            return True
        return await self.prober.alive(record.url)

    async def aclose(self) -> None:
        """End the probes."""
        for task in self._probing:
            task.cancel()
        await asyncio.gather(*self._probing, return_exceptions=True)

    async def _await_return(self, served: Served, endpoint: Endpoint) -> None:
        while served.is_suspect(endpoint):
            await asyncio.sleep(SUSPECT_PROBE_S)
            if await self.prober.alive(endpoint.record.url):
                served.clear(endpoint, asyncio.get_running_loop().time())
                log.info("endpoint back", extra={"facts": {"endpoint": endpoint.id}})
