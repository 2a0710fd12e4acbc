"""Talks to workers: asks what they do, has them drain, and follows them until they have.

`reconcile` hands over drain orders and reads the reports; the planner decides what they mean. The deadline is the planner's too.
Workers answer `/penstock/*` to whoever holds the fleet's token.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

import httpx
import msgspec

from penstock_operator.cache import Key
from penstock_operator.observe import Report
from penstock_operator.plan import DrainOrder

log = logging.getLogger(__name__)

_CALL_S = 3.0
_POLL_S = 1.0
_UNREACHABLE_AFTER = 5
_TOKEN_HEADER = "x-penstock-token"  # noqa: S105 -- the header's name


class _Load(msgspec.Struct):
    running: int = 0
    waiting: int = 0
    kv_used_tokens: int = 0


class _State(msgspec.Struct):
    """The part of a worker's state that matters here; the rest is passed over."""

    load: _Load
    draining: bool = False
    drained: bool = False
    exchanges: int = 0


class Drainer:
    """See the module. Use from one event loop; `aclose` when done."""

    def __init__(self, token: str, on_change: Callable[[Key], None], *, poll_s: float = _POLL_S) -> None:
        """`on_change` is told when a worker of that ModelService has drained or has gone silent."""
        self._on_change = on_change
        self._poll_s = poll_s
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._reports: dict[str, Report] = {}
        self._of: dict[Key, set[str]] = {}
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(timeout=_CALL_S, limits=limits, trust_env=False, headers={_TOKEN_HEADER: token} if token else {})

    async def ask(self, pods: Iterable[tuple[str, str]]) -> dict[str, Report | None]:
        """What each worker (uid, url) does now; None where it does not answer."""
        asked = list(pods)
        states = await asyncio.gather(*(self._call("GET", url, "/penstock/state") for _, url in asked))
        return {uid: None if state is None else _report(state) for (uid, _), state in zip(asked, states, strict=True)}

    def follow(self, key: Key, orders: Iterable[DrainOrder]) -> None:
        """Drain these workers of a ModelService, and no others of it."""
        wanted = {order.uid: order for order in orders}
        known = self._of.pop(key, set())
        for uid in known - wanted.keys():
            self._reports.pop(uid, None)
            task = self._tasks.pop(uid, None)
            if task is not None:
                task.cancel()
        if wanted:
            self._of[key] = set(wanted)
        for uid in wanted.keys() - known:
            self._tasks[uid] = asyncio.create_task(self._drain(key, wanted[uid]), name=f"drain {uid}")

    def reports(self, key: Key) -> Mapping[str, Report]:
        """What the workers that drain have said last, by uid."""
        return {uid: self._reports[uid] for uid in self._of.get(key, ()) if uid in self._reports}

    @property
    def draining(self) -> int:
        return len(self._tasks)

    async def aclose(self) -> None:
        """Stop following; the workers go on draining."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._client.aclose()

    async def _drain(self, key: Key, order: DrainOrder) -> None:
        told, silent = False, 0
        while True:
            state = await self._call("GET" if told else "POST", order.url, "/penstock/state" if told else "/penstock/drain")
            told = state is not None and state.draining  # a worker that has begun anew meanwhile is told again
            silent = 0 if state is not None else silent + 1
            if state is not None:
                self._reports[order.uid] = _report(state)
            elif silent == _UNREACHABLE_AFTER:
                self._reports[order.uid] = Report(unreachable=True)
                log.warning("a draining worker does not answer", extra={"facts": {"uid": order.uid, "url": order.url}})
                self._on_change(key)
            if state is not None and state.drained:
                return self._on_change(key)
            await asyncio.sleep(self._poll_s)

    async def _call(self, method: str, url: str, path: str) -> _State | None:
        try:
            response = await self._client.request(method, url + path)
            return msgspec.json.decode(response.content, type=_State) if response.status_code < 300 else None
        except (httpx.HTTPError, msgspec.DecodeError, OSError):
            return None


def _report(state: _State) -> Report:
    return Report(
        running=max(state.exchanges, state.load.running + state.load.waiting), kv_tokens=state.load.kv_used_tokens, drained=state.drained
    )
