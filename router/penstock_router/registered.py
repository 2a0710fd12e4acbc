"""Models and endpoints found in the registry: one follower of the shared index per served model, told how to ask workers directly.

The follower (kvindex) tails Redis; here it gets what only the router knows: GET /penstock/kv with the fleet's token, and
whether workers live while their leases do not count. `app` makes the source, `endpoints` holds what it finds.
"""

import asyncio
import logging
from collections.abc import Sequence
from secrets import token_hex
from typing import Any

import msgspec
from penstock_core.endpoint import Endpoint, WorkerRecord
from penstock_core.errors import IndexUnavailable
from penstock_core.facts import TOKEN_HEADER
from penstock_core.kv_events import KvState, decode_state
from penstock_core.slo import DEFAULT_SLO, Slo
from penstock_dataplane.client import Client
from penstock_dataplane.errors import UpstreamError
from penstock_kvindex import mirror as kv_mirror
from penstock_kvindex.mirror import Mirror
from penstock_kvindex.models import ServedModels
from penstock_kvindex.redis import RedisIndex
from penstock_kvindex.scaling import ScalingStore
from penstock_kvindex.tail import Follower
from penstock_kvindex.windows import Windows

from penstock_router.config import RouterConfig, Secrets, ServedModel
from penstock_router.endpoints import Directory, IndexView, Served
from penstock_router.legs import origin_of
from penstock_router.prefixes import Found, Keys
from penstock_router.traffic import TrafficPublisher

log = logging.getLogger(__name__)

_STATE_PATH = "/penstock/kv"
_STATE_TIMEOUT_S = 5.0
_MOST_STATE_BYTES = 256 << 20
_FIRST_LOOK_S = 2.0
_ASKED_LATELY_S = 3.0
_PROBE_EVERY_S = 0.5
_MISSES = 2
_LOOK_EVERY_S = 1.0


class MirrorCache:
    """The index mirror as the director asks it: bookings lapse."""

    def __init__(self, mirror: Mirror, speculative_s: float) -> None:
        self._mirror = mirror
        self._speculative_s = speculative_s

    def find(self, keys: Keys) -> Found:
        return self._mirror.longest_prefix(keys), None

    def book(self, endpoint: Endpoint, keys: Keys, now: float) -> None:
        if endpoint.slot is not None:
            self._mirror.book(endpoint.slot, keys, now + self._speculative_s)

    def drop(self, endpoint_id: str) -> None:
        """The follower drops the slot itself."""


class FollowedIndex(IndexView):
    """A follower's figures."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    @property
    def warm(self) -> bool:  # type: ignore[override]
        return self._follower.warm

    @property
    def chunks(self) -> int:  # type: ignore[override]
        return self._follower.mirror.chunks

    @property
    def lag_s(self) -> float | None:  # type: ignore[override]
        return self._follower.lag_s

    @property
    def reloads(self) -> dict[str, int]:  # type: ignore[override]
        return dict(self._follower.reloads)


class Liveness:
    """Whether the workers of one model live, judged without Redis. State: probes missed in a row, and when it was last asked."""

    def __init__(self, served: Served, directory: Directory) -> None:
        self._served = served
        self._directory = directory
        self._missed: dict[str, int] = {}
        self._asked_s = -_ASKED_LATELY_S
        self._known: dict[str, Endpoint] = {}

    def is_alive(self, endpoint: Endpoint) -> bool:
        """Alive until probes miss it twice; asking keeps the probes going."""
        self._asked_s = asyncio.get_running_loop().time()
        self._known[endpoint.id] = endpoint
        return self._missed.get(endpoint.id, 0) < _MISSES

    async def run(self) -> None:
        """Probe, while somebody asks."""
        while True:
            await asyncio.sleep(_PROBE_EVERY_S)
            if asyncio.get_running_loop().time() - self._asked_s > _ASKED_LATELY_S:
                self._missed.clear()
                self._known.clear()
                continue
            await asyncio.gather(*(self._probe(one) for one in list(self._known.values())))

    async def _probe(self, endpoint: Endpoint) -> None:
        if await self._directory.is_alive(self._served, endpoint.record):
            self._missed.pop(endpoint.id, None)
        else:
            self._missed[endpoint.id] = self._missed.get(endpoint.id, 0) + 1


class _Following:
    """One served model: its index, its follower, and the tasks that run them."""

    def __init__(self, model: ServedModel, source: "RegisteredSource") -> None:
        config = source.config
        self.own_slo = model.slo
        self.index = RedisIndex(config.redis_url, model.name, chunk_bytes=model.chunk_bytes)
        mirror = Mirror()
        cache = MirrorCache(mirror, config.speculative_s)
        self.served = source.directory.add(model.name, cache, chunk_bytes=model.chunk_bytes, slo=model.slo or DEFAULT_SLO, ours=True)
        self.liveness = Liveness(self.served, source.directory)
        self.follower = Follower(
            self.index,
            mirror,
            fetch_state=source.fetch_state,
            is_alive=self.liveness.is_alive,
            on_endpoints=self._take,
            clock=asyncio.get_running_loop().time,
        )
        self.served.index = FollowedIndex(self.follower)
        self.windows = Windows(config.redis_url, model.name)
        self.scaling = ScalingStore(config.redis_url, model.name)
        self.traffic = TrafficPublisher(self.served, self.windows, router=source.name, window_s=config.traffic_window_s)
        loop = asyncio.get_running_loop()
        self.tasks = [loop.create_task(one.run()) for one in (self.follower, self.liveness, self.traffic)]

    def _take(self, endpoints: tuple[Endpoint, ...]) -> None:
        now = asyncio.get_running_loop().time()
        before = {one.id for one in self.served.live}
        self.served.set_endpoints(endpoints, now)
        for one in endpoints:
            if one.load is not None:
                self.served.scheduler.report(one.id, one.load, now)
        after = {one.id for one in self.served.live}
        if before != after:
            facts = {"model": self.served.name, "came": sorted(after - before), "went": sorted(before - after)}
            log.info("endpoints changed", extra={"facts": facts})

    def set_targets(self, slo: Slo) -> None:
        """Of requests that come from now on and name none."""
        if slo != self.served.slo:
            self.served.slo = slo
            log.info("targets changed", extra={"facts": {"model": self.served.name, "ttft_s": slo.ttft_s, "itl_s": slo.itl_s}})

    async def aclose(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.traffic.end()
        await self.windows.aclose()
        await self.scaling.aclose()
        await self.index.aclose()


class RegisteredSource:
    """Follows the models of the configuration, or where it names none, every model that workers announce."""

    def __init__(self, config: RouterConfig, secrets: Secrets, directory: Directory, client: Client) -> None:
        self.config = config
        self.directory = directory
        self.name = token_hex(8)
        """Of this process among all routers."""
        self._client = client
        self._headers = [(TOKEN_HEADER, secrets.fleet_token.encode())] if secrets.fleet_token else []
        self._following: dict[str, _Following] = {}
        self._refused: set[str] = set()
        self._looked = False
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow; waits a moment for a first look, but starts without Redis as well."""
        kv_mirror.warm_up()
        if self.config.models:
            self._following = {model.name: _Following(model, self) for model in self.config.models}
        else:
            self.directory.warm_up()
            self.directory.all_known = lambda: self._looked
        self._looking = asyncio.get_running_loop().create_task(self._look(), name="look for models and targets")
        until_s = asyncio.get_running_loop().time() + _FIRST_LOOK_S
        # The follower has no event for it, and a look a hundredth of a second late harms nobody.
        while asyncio.get_running_loop().time() < until_s and not self.directory.warm:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def scaling(self, most: int) -> list[dict[str, Any]]:
        """The latest decisions of autoscalers, a row a model. Raises IndexUnavailable."""
        rows = []
        for name, each in list(self._following.items()):
            told = await each.scaling.told(most)
            rows.append({"model": name, "now_s": await each.windows.clock(), "decisions": [one for one in map(_read_json, told) if one]})
        return rows

    async def aclose(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        for each in self._following.values():
            await each.aclose()

    async def _look(self) -> None:
        """Until cancelled: follow what is announced, leave what is announced no more and has no worker; follow targets, and who is woken.
        Redis away changes nothing."""
        models = ServedModels(self.config.redis_url)
        away = False
        try:
            while True:
                try:
                    wakeable = frozenset(await models.wakeable())
                    if not self.config.models:
                        await self._follow_only(sorted(wakeable.union(await models.names())))
                    for name, each in self._following.items():
                        each.served.wakeable = name in wakeable
                    await self._follow_targets(models)
                    self._looked, away = True, False
                except IndexUnavailable as error:
                    if not away:
                        log.warning("models and their targets cannot be read", extra={"facts": {"error": str(error)}})
                    away = True
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            await models.aclose()

    async def _follow_only(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self._following or name in self._refused:
                continue
            try:
                self._following[name] = _Following(ServedModel(name=name), self)
                log.info("model found", extra={"facts": {"model": name}})
            except ValueError as error:  # a name that no router takes, or a model given by hand as well
                self._refused.add(name)
                log.warning("model left out", extra={"facts": {"model": name, "why": str(error)}})
        for name in [name for name, each in self._following.items() if name not in names and not each.served.live]:
            log.info("model gone", extra={"facts": {"model": name}})
            self.directory.remove(name)
            await self._following.pop(name).aclose()

    async def _follow_targets(self, models: ServedModels) -> None:
        """Targets once told hold while the model is followed: a Redis that has lost them does not loosen or tighten anything."""
        for name, slo in (await models.targets([name for name, each in self._following.items() if each.own_slo is None])).items():
            self._following[name].set_targets(slo)

    async def fetch_state(self, record: WorkerRecord) -> KvState | None:
        """What the worker itself says it holds; None where it does not say. Raises ValueError for a body of another form."""
        deadline_s = asyncio.get_running_loop().time() + _STATE_TIMEOUT_S
        try:
            response = await self._client.request(origin_of(record.url), "GET", _STATE_PATH, self._headers, deadline_s=deadline_s)
            body = await response.read(_MOST_STATE_BYTES)
        except UpstreamError:
            return None
        return decode_state(body) if response.status == 200 else None


def _read_json(written: bytes) -> Any:
    """None for what is no JSON; what is in it is between autoscaler and `penstock explain scaling`."""
    try:
        return msgspec.json.decode(written)
    except msgspec.DecodeError:
        return None
