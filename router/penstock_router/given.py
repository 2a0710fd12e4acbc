"""Endpoints given by hand: plain OpenAI-compatible servers that know nothing of Penstock.

One task per endpoint asks GET /v1/models (which models it serves) and a health path, takes it out when it fails and in when
it answers. What it holds in its cache is guessed from the router's own placements.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence

import msgspec
from penstock_core.endpoint import Endpoint, WorkerRecord
from penstock_core.profile import DEFAULT_PROFILE
from penstock_core.prompt import DEFAULT_CHUNK_BYTES
from penstock_dataplane.client import Client, Origin
from penstock_dataplane.errors import UpstreamError

from penstock_router.config import GivenEndpoint, RouterConfig
from penstock_router.endpoints import PROBE_TIMEOUT_S, Directory, Served
from penstock_router.prefixes import GuessedCache

log = logging.getLogger(__name__)

_MISSES = 2
_GUESSED_TOKENS_PER_CHUNK = 64
_MOST_ANSWER_BYTES = 4 << 20


class _Card(msgspec.Struct):
    id: str
    parent: str | None = None
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


class Discovered(msgspec.Struct, frozen=True):
    """A model that a server says it serves, the adapters on top of it, and its longest context if it says so."""

    model: str
    adapters: tuple[str, ...] = ()
    max_model_tokens: int | None = None


def read_models(body: bytes) -> tuple[Discovered, ...]:
    """What a GET /v1/models answer names; entries with a `parent` are its adapters. Raises msgspec.DecodeError."""
    cards = msgspec.json.decode(body, type=_Cards).data
    names = {card.id for card in cards}
    found = []
    for card in cards:
        if card.parent is None or card.parent not in names or card.parent == card.id:
            adapters = tuple(sorted(one.id for one in cards if one.parent == card.id and one.id != card.id))
            found.append(Discovered(card.id, adapters, card.max_model_len))
    return tuple(found)


class GivenSource:
    """Keeps the directory true about all endpoints given by hand.

    State: `_serving`, what each of them was last seen to serve; changed by its own task only.
    """

    def __init__(self, config: RouterConfig, directory: Directory, client: Client) -> None:
        self._config = config
        self._directory = directory
        self._client = client
        self._serving: dict[int, tuple[Discovered, ...]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        for given in config.endpoints:
            if given.model:
                self._served(given.model)

    async def start(self) -> None:
        """Look at every endpoint once, then keep looking in the background."""
        await asyncio.gather(*(self._look(number, given) for number, given in enumerate(self._config.endpoints)))
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._watch(number, given)) for number, given in enumerate(self._config.endpoints)]

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, number: int, given: GivenEndpoint) -> None:
        missed = 0
        while True:
            await asyncio.sleep(self._config.probe_s)
            try:
                missed = 0 if await self._look(number, given, out=missed + 1 >= _MISSES) else missed + 1
            except Exception:
                log.exception("probing failed", extra={"facts": {"endpoint": given.url}})

    async def _look(self, number: int, given: GivenEndpoint, *, out: bool = True) -> bool:
        """Ask once; on an answer bring the endpoint in as it now is, without one take it out (if `out`). Whether it answered."""
        found = await self._ask(given)
        before = self._serving.get(number, ())
        after = found if found is not None else () if out else before
        if after != before:
            self._serving[number] = after
            for model in {each.model for each in (*before, *after)}:
                self._refresh(model)
            log.info("endpoint changed", extra={"facts": {"url": given.url, "models": [each.model for each in after]}})
        return found is not None

    async def _ask(self, given: GivenEndpoint) -> tuple[Discovered, ...] | None:
        """What the endpoint serves now; None where it does not answer."""
        deadline_s = asyncio.get_running_loop().time() + PROBE_TIMEOUT_S
        try:
            response = await self._client.request(Origin.parse(given.url), "GET", "/v1/models", deadline_s=deadline_s)
            body = await response.read(_MOST_ANSWER_BYTES)
            found = read_models(body) if response.status == 200 else ()
        except UpstreamError:
            return None
        except (msgspec.DecodeError, UnicodeError):
            found = ()
        if given.model:
            named = [each for each in found if each.model == given.model]
            if named or found or await self._directory.prober.alive(given.url):
                return tuple(named) or (Discovered(given.model),)
            return None
        return found or None

    def _refresh(self, model: str) -> None:
        endpoints = [
            Endpoint(self._record(given, each))
            for number, given in enumerate(self._config.endpoints)
            for each in self._serving.get(number, ())
            if each.model == model
        ]
        self._served(model).set_endpoints(endpoints, asyncio.get_running_loop().time())

    def _record(self, given: GivenEndpoint, each: Discovered) -> WorkerRecord:
        return WorkerRecord(
            id=given.id or given.url.partition("://")[2],
            url=given.url,
            role=given.role,
            pool="given",
            model=each.model,
            epoch=0,
            profile=DEFAULT_PROFILE,
            kv_total_tokens=self._config.given_kv_tokens,
            block_tokens=16,
            max_model_tokens=each.max_model_tokens or 2**31,
            connector=given.hands_over_by,
            connector_facts=dict(given.connector_facts),
            adapters=each.adapters,
            capabilities=given.capabilities,
            exact=False,
        )

    def _served(self, model: str) -> Served:
        served = self._directory.models.get(model)
        if served is None:
            cache = GuessedCache(self._config.given_kv_tokens // _GUESSED_TOKENS_PER_CHUNK, self._config.given_entry_s)
            served = self._directory.add(model, cache, chunk_bytes=DEFAULT_CHUNK_BYTES)
        return served


def models_body(listing: Sequence[tuple[str, str | None]], created: int) -> Mapping[str, object]:
    """OpenAI's list object for GET /v1/models."""
    return {
        "object": "list",
        "data": [model_card(name, parent, created) for name, parent in listing],
    }


def model_card(name: str, parent: str | None, created: int) -> Mapping[str, object]:
    """One entry of the list; an adapter names the model below it."""
    card: dict[str, object] = {"id": name, "object": "model", "created": created, "owned_by": "penstock"}
    return {**card, "parent": parent} if parent is not None else card
