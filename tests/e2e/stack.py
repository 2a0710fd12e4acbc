"""The whole of Penstock on this machine: a private Redis, worker processes under a fleet, a router process, and clients."""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import msgspec
from penstock_cli.child import Child
from penstock_cli.redis_server import RedisServer
from penstock_core.endpoint import Role
from penstock_core.kv_events import KvState, decode_state
from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.fleet import Fleet
from penstock_worker.fleet_plan import FleetLimits
from penstock_worker.process_host import ProcessHost
from prometheus_client.parser import text_string_to_metric_families

CHAT = "/v1/chat/completions"
TOKEN = "fleet-token"
SECRET = 0x5EED
WAIT_S = 60.0


class Reply(msgspec.Struct):
    """A streamed answer as a client got it."""

    text: str
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    """The body of an error status, or of an SSE error event."""
    placement: dict[str, str]
    """The explain header."""
    began_s: float
    arrivals_s: list[float]
    """When each content chunk came (monotonic)."""


class Stack:
    """A running stack; an async context manager."""

    def __init__(
        self,
        folder: Path,
        pools: Mapping[str, int],
        router: Mapping[str, object],
        worker: Mapping[str, object],
        *,
        ready_s: float = WAIT_S,
        pool_settings: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        """`ready_s`: how long the workers may take to come up. `pool_settings` are laid over `worker`, by pool."""
        self._ready_s = ready_s
        self.redis = RedisServer(folder / "redis")
        self.redis.start()
        secrets = WorkerSecrets(chunk_secret=SECRET, fleet_token=TOKEN, redis_url=self.redis.url)
        laid_over = pool_settings or {}
        configs = {
            pool: WorkerConfig(**{"model": "m", "role": _role(pool), "pool": pool, **worker, **laid_over.get(pool, {})})  # type: ignore[arg-type]
            for pool in pools
        }
        self.fleet = Fleet(
            ProcessHost(folder / "workers", secrets), configs, fleet_token=TOKEN, limits=FleetLimits(start_s=max(ready_s, 120.0))
        )
        self.pools = dict(pools)
        self._folder = folder
        self._router_settings = router
        self.router: Child | None = None
        self.client = httpx.AsyncClient(timeout=120.0, trust_env=False, limits=httpx.Limits(max_connections=1024))
        self.url = ""

    async def __aenter__(self) -> "Stack":
        try:
            self._start_router()
            await self.fleet.open()
            for pool, replicas in self.pools.items():
                self.fleet.scale(pool, replicas)
            await self.fleet.wait_settled(self._ready_s)
            url_file = self._folder / "router.url"
            await self.until(lambda: url_file.exists() or self.router_ended, "the router listens")
            assert not self.router_ended, f"the router ended: {self.router and self.router.said()}"
            self.url = url_file.read_text().strip()
            await self.until_async(lambda: self.sees(sum(self.pools.values())), "the router sees every worker")
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self.router is not None:
            print(self.router.said())  # noqa: T201 -- shown by pytest with the failure
        await self.client.aclose()
        await self.fleet.aclose(drain=False)
        if self.router is not None:
            self.router.stop(10.0)
        self.redis.close()

    def _start_router(self) -> None:
        settings = [f"--set={name}={value}" for name, value in self._router_settings.items()]
        command = [sys.executable, "-m", "penstock_cli.main", "router", "--port", "0", "--model", "m", *settings]
        command += ["--url-file", str(self._folder / "router.url")]
        environ = {"PENSTOCK_CHUNK_SECRET": f"{SECRET:x}", "PENSTOCK_FLEET_TOKEN": TOKEN, "PENSTOCK_REDIS_URL": self.redis.url}
        self.router = Child("router", command, self._folder / "router.log", environ)

    @property
    def router_ended(self) -> bool:
        return self.router is not None and self.router.ended() is not None

    async def until(self, true: Callable[[], bool], what: str, *, within_s: float = WAIT_S) -> None:
        """Wait for a condition; fails with `what` after `within_s`."""
        deadline = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
            await asyncio.sleep(0.02)

    async def until_async(self, true: Callable[[], Any], what: str, *, within_s: float = WAIT_S) -> None:
        """`until` for a condition that must be awaited."""
        deadline = time.monotonic() + within_s
        while not await true():
            assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
            await asyncio.sleep(0.05)

    async def sees(self, workers: int) -> bool:
        """Whether the router is ready with exactly so many endpoints."""
        ready = await self.client.get(f"{self.url}/readyz")
        return ready.status_code == 200 and ready.json()["models"].get("m", {}).get("endpoints") == workers

    async def chat(self, body: bytes, **headers: str) -> Reply:
        """POST a streamed chat body and take the answer apart."""
        began = time.monotonic()
        reply = Reply("", None, None, {}, began, [])
        pieces: list[str] = []
        sent = {"content-type": "application/json", "x-penstock-explain": "1", **headers}
        async with self.client.stream("POST", f"{self.url}{CHAT}", content=body, headers=sent) as response:
            reply.placement = dict(pair.split("=", 1) for pair in response.headers.get("x-penstock-placement", "").split(";") if pair)
            if response.status_code != 200:
                reply.error = {"status": response.status_code, **msgspec.json.decode(await response.aread())["error"]}
                return reply
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = msgspec.json.decode(line[6:])
                reply.error = event.get("error", reply.error)
                reply.usage = event.get("usage") or reply.usage
                for choice in event.get("choices", ()):
                    if choice["delta"].get("content"):
                        pieces.append(choice["delta"]["content"])
                        reply.arrivals_s.append(time.monotonic())
        reply.text = "".join(pieces)
        return reply

    async def decisions(self, limit: int) -> list[dict[str, Any]]:
        """The router's last decisions, newest first."""
        found = await self.client.get(f"{self.url}/admin/decisions", params={"limit": limit})
        return list(found.json()["decisions"])

    async def router_metric(self, name: str, **labels: str) -> float:
        """Sum of a router metric's samples with these labels."""
        return _sum((await self.client.get(f"{self.url}/metrics")).text, name, labels)

    async def worker_metric(self, name: str, **labels: str) -> float:
        """The same, summed over all workers."""
        texts = await asyncio.gather(*(self.client.get(f"{worker.url}/metrics") for worker in self.fleet.status() if worker.url))
        return sum(_sum(answer.text, name, labels) for answer in texts)

    async def idle(self) -> bool:
        """Whether the router serves nothing and no worker computes, queues or keeps anything for somebody."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "penstock_worker_kv_unclaimed_tokens")
        left = [await self.worker_metric(name) for name in names]
        return not any(left) and await self.router_metric("penstock_router_active_requests") == 0

    async def held(self) -> dict[str, KvState]:
        """Each worker's own list of the chunks it holds, by worker id."""
        states = {}
        for worker in self.fleet.status():
            answer = await self.client.get(f"{worker.url}/penstock/kv", headers={"x-penstock-token": TOKEN})
            states[worker.id] = decode_state(answer.content)
        return states


def _role(pool: str) -> Role:
    """A pool is named by its role; any other name is one more undivided pool."""
    return Role(pool) if pool in list(Role) else Role.BOTH


def _sum(text: str, name: str, labels: Mapping[str, str]) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
