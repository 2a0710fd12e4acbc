"""`penstock up`: Redis, workers on Ray or as processes, and a router, on this machine, until Ctrl-C.

It starts things in order, says so, stays, tells of events in a line each, and stops things in reverse order. A second Ctrl-C kills
what is left. All decisions about workers are the fleet's; it serves no request itself.
"""

import asyncio
import importlib.util
import logging
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from penstock_core.errors import IndexUnavailable, PenstockError
from penstock_dataplane.loop import run
from penstock_kvindex.redis import RedisIndex
from penstock_process.secrets import parse_chunk_secret
from penstock_router.keys import KeyRing
from penstock_worker.config import WorkerSecrets
from penstock_worker.fleet import Fleet
from penstock_worker.fleet_plan import FleetLimits
from penstock_worker.worker_host import StartFailed, WorkerHost
from rich.console import Console
from rich.markup import escape

from penstock_cli import snippets
from penstock_cli.child import Child, descendants, end_all
from penstock_cli.data_folder import DataFolder, Running
from penstock_cli.local_scaling import LocalScaling
from penstock_cli.ports import require_free
from penstock_cli.redis_server import NoRedisServer, RedisServer
from penstock_cli.steps import Steps, Stopped
from penstock_cli.up_plan import ROUTER_DRAIN_S, SCALE_IN_DRAIN_S, WORKER_DRAIN_S, UpPlan

_LISTEN = "127.0.0.1"
_LOOK_S = 0.5
_POLL_S = 0.05
_REDIS_S = 3.0
_RESTART_PAUSE_S = 1.0
_MARGIN_S = 3.0
INTERRUPTED = 130


def run_up(plan: UpPlan, data: DataFolder) -> int:
    """Run until told to stop; gives the exit status. Raises PenstockError where something cannot be started."""
    console = Console(highlight=False, soft_wrap=True)
    pools = plan.pools()
    host = choose_host(plan.host, console)
    if plan.api_keys:
        KeyRing(Path(plan.api_keys))  # the router reads them; here only to say at once that it cannot
    if plan.redis_url:
        require_answer(plan.redis_url, plan.name)
    data.open()
    with ExitStack() as stack:
        stack.callback(data.close)
        stack.callback(lambda: end_all(descendants(os.getpid()), _MARGIN_S))  # a net under everything: nothing is left behind
        require_free(_LISTEN, plan.port)
        require_free(_LISTEN, plan.autoscaler_port, "--autoscaler-port")
        redis_url, own_redis = plan.redis_url, None
        try:
            if not redis_url:
                own_redis = stack.enter_context(RedisServer(data.path / "redis"))
                redis_url = own_redis.url
                console.print(f"[green]✓[/] Redis  {escape(str(own_redis.socket_path))}")
            secrets = WorkerSecrets(
                chunk_secret=parse_chunk_secret(data.chunk_secret_path.read_text(encoding="ascii").strip()),
                fleet_token=data.fleet_token_path.read_text(encoding="ascii").strip(),
                redis_url=redis_url,
            )
            fleet = Fleet(
                make_host(host, data, secrets),
                pools,
                fleet_token=secrets.fleet_token,
                limits=FleetLimits(start_s=plan.start_s, drain_s=SCALE_IN_DRAIN_S),
            )
            return run(_Up(plan, data, console, fleet, host, redis_url, own_redis).serve())
        except KeyboardInterrupt:
            return INTERRUPTED


def require_answer(redis_url: str, model: str) -> None:
    """Ask the Redis that was given for its registry. Raises PenstockError where it does not answer."""

    async def ask() -> None:
        index = RedisIndex(redis_url, model, timeout_s=_REDIS_S)
        try:
            await index.registry()
        finally:
            await index.aclose()

    try:
        asyncio.run(ask())
    except IndexUnavailable as error:
        where = _without_password(redis_url)
        raise PenstockError(
            f"redis is {where!r} and does not answer ({error}); start it, or leave --redis out and have one started"
        ) from None


def choose_host(wanted: str, console: Console) -> str:
    """`ray` or `process`; `auto` is Ray where it is installed, and says so where not. Raises PenstockError for Ray without Ray."""
    installed = importlib.util.find_spec("ray") is not None
    if wanted == "ray" and not installed:
        raise PenstockError("host is 'ray', but Ray is not installed for this Python; allowed: --host process, or install penstock[ray]")
    if wanted == "auto" and not installed:
        console.print("Ray is not installed for this Python: workers run as plain processes (--host process).")
    return wanted if wanted != "auto" else "ray" if installed else "process"


def make_host(host: str, data: DataFolder, secrets: WorkerSecrets) -> WorkerHost:
    """What runs the workers; Ray is imported here and only for `ray`."""
    folder = data.path / "workers"
    if host == "ray":
        from penstock_worker.ray_host import RayHost

        return RayHost(folder, secrets)
    from penstock_worker.process_host import ProcessHost

    return ProcessHost(folder, secrets)


class _FleetLines(logging.Handler):
    """Shows what the fleet does, a line each: troubles always, ordinary steps once everything has come up."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        facts: dict[str, Any] = getattr(record, "facts", {})
        shown = " ".join(f"{name}={value}" for name, value in facts.items())
        colour = "yellow" if record.levelno >= logging.WARNING else "dim"
        self.console.print(f"[{colour}]fleet: {escape(' '.join(filter(None, (record.getMessage(), shown))))}[/]")


class _Up:
    """One run. State: the router's and Redis' processes, replaced when they end; the event that signals set."""

    def __init__(
        self, plan: UpPlan, data: DataFolder, console: Console, fleet: Fleet, host: str, redis_url: str, own_redis: RedisServer | None
    ) -> None:
        self.plan = plan
        self.data = data
        self.console = console
        self.fleet = fleet
        self.host = host
        self.redis_url = redis_url
        self.own_redis = own_redis
        """None: the user's, and theirs to look after."""
        self.stop = asyncio.Event()
        self.steps = Steps(console, self.stop)
        self.lines = _FleetLines(console)
        self.scaling: LocalScaling | None = None
        self.scaling_url = ""
        self.router: Child | None = None
        self.url = ""

    async def serve(self) -> int:
        """Start, stay, stop."""
        fleet_log = logging.getLogger("penstock_worker.fleet")
        fleet_log.addHandler(self.lines)
        fleet_log.setLevel(logging.INFO)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            await self._start()
            self.lines.setLevel(logging.INFO)
            await self._stay()
            return 0
        except Stopped:
            return INTERRUPTED
        except StartFailed as error:
            raise PenstockError(f"{error}" + ("; or try --host process" if self.host == "ray" else "")) from None
        finally:
            self.lines.setLevel(logging.WARNING)
            await self._end()
            fleet_log.removeHandler(self.lines)

    def _on_signal(self, number: signal.Signals) -> None:
        """Only a Ctrl-C kills what somebody has asked to stop before: who ends a whole process group often tells us twice."""
        if number is not signal.SIGINT or not self.stop.is_set():
            self.stop.set()
            return
        end_all(descendants(os.getpid()), 0.0)
        os._exit(INTERRUPTED)

    async def _start(self) -> None:
        self.router = self._start_router(self.plan.port)
        await self.steps.run("Ray" if self.host == "ray" else "process host", self.fleet.open())
        for pool, replicas in self.plan.desired.items():
            self.fleet.scale(pool, replicas)
        wanted = ", ".join(f"{replicas} {pool}" for pool, replicas in self.plan.desired.items())
        await self.steps.run(f"workers: {wanted}", self._workers_ready())
        self.url = await self.steps.run("router", self._router_ready(), lambda url: url)
        self.data.announce(
            Running(pid=os.getpid(), router_url=self.url, redis_url=_without_password(self.redis_url), model=self.plan.name, host=self.host)
        )
        if self.plan.bounds:
            self.scaling = LocalScaling(self.plan, self.fleet, self.redis_url, self.console)
            self.scaling_url = await self.scaling.listen(self.plan.autoscaler_port)
        self._show_ready()

    def _start_router(self, port: int) -> Child:
        url_file = self._url_file
        url_file.unlink(missing_ok=True)
        options = list(self.plan.router_options())
        options[options.index("--port") + 1] = str(port)
        environ = {
            "PENSTOCK_CHUNK_SECRET_FILE": str(self.data.chunk_secret_path.resolve()),
            "PENSTOCK_FLEET_TOKEN_FILE": str(self.data.fleet_token_path.resolve()),
            "PENSTOCK_ADMIN_KEY_FILE": str(self.data.admin_key_path.resolve()),
            "PENSTOCK_REDIS_URL": self.redis_url,
        }
        command = [sys.executable, "-m", "penstock_cli.main", "router", *options, "--url-file", str(url_file.resolve())]
        return Child("router", command, self.data.log_path("router"), environ)

    @property
    def _url_file(self) -> Path:
        return self.data.path / "router.url"

    async def _workers_ready(self) -> None:
        waiting = asyncio.ensure_future(self.fleet.wait_settled(self.plan.ready_s))
        try:
            while not waiting.done():
                self._check_router()
                await asyncio.wait((waiting,), timeout=_POLL_S)
            await waiting
        except TimeoutError:
            not_ready = ", ".join(worker.id for worker in self.fleet.status() if worker.phase.value != "ready")
            raise PenstockError(
                f"not ready after {self.plan.ready_s:g} s: {not_ready}; see the logs in {self.data.path / 'workers'}"
            ) from None
        finally:
            waiting.cancel()

    async def _router_ready(self) -> str:
        """The router's URL once it lists every worker. Raises ChildFailed when it ends, PenstockError when it takes too long."""
        deadline_s = asyncio.get_running_loop().time() + self.plan.ready_s
        headers = {"authorization": f"Bearer {self.data.admin_key()}"}
        async with httpx.AsyncClient(timeout=5.0, trust_env=False, headers=headers) as client:
            while asyncio.get_running_loop().time() < deadline_s:
                self._check_router()
                if self._url_file.exists():
                    url = self._url_file.read_text(encoding="ascii").strip()
                    if await self._sees_all(client, url):
                        return url
                await asyncio.sleep(_POLL_S)
        raise PenstockError(
            f"the router does not see all {self.plan.workers} workers after {self.plan.ready_s:g} s; see {self.data.log_path('router')}"
        )

    async def _sees_all(self, client: httpx.AsyncClient, url: str) -> bool:
        try:
            ready = await client.get(f"{url}/readyz")
            models = ready.json()["models"]
        except (httpx.HTTPError, ValueError, KeyError):
            return False
        return bool(ready.status_code == 200 and models.get(self.plan.name, {}).get("endpoints") == self.plan.workers)

    def _check_router(self) -> None:
        if self.router is not None and self.router.ended() is not None:
            raise self.router.failure()

    def _show_ready(self) -> None:
        with_key = bool(self.plan.api_keys)
        say = self.console.print
        folder, model = escape(str(self.data.path)), escape(self.plan.name)
        say(f"\n[bold green]Ready:[/] [bold]{self.url}/v1[/]  model [bold]{model}[/]  logs in {folder}")
        if not with_key:
            say("Every program on this machine may ask it: no API keys are given (--api-keys FILE).")
        say("")
        say("[bold]Ask it[/] (x-penstock-placement in the answer says where it went):\n")
        say(snippets.curl(self.url, self.plan.name, with_key=with_key), markup=False)
        say("\n[bold]Or with the openai client[/] (.venv/bin/python; the second question shows cached tokens):\n")
        say(snippets.openai(self.url, self.plan.name, with_key=with_key), markup=False)
        if self.plan.bounds:
            bounds = ", ".join(f"{pool} {one.least}..{one.most}" for pool, one in self.plan.bounds.items())
            slo, share = self.plan.target.slo, self.plan.attainment_ratio
            say(f"\nThe autoscaler sizes {bounds} so that {share:.0%} of requests have their first token within {slo.ttft_s * 1e3:g} ms")
            say(f"and the others every {slo.itl_s * 1e3:g} ms. Every change is said here; penstock explain scaling has all decisions.")
            asleep = [pool for pool, one in self.plan.bounds.items() if not one.least]
            if asleep:
                idle_s = self.plan.scaling.scaler.idle_s
                say(f"{' and '.join(asleep)} may go to 0 after {idle_s:g} s without a request; the next one waits for a start.")
            say(f"Its metrics: {self.scaling_url}")
        say("\n[dim]penstock status, penstock explain: where requests go and why.  Ctrl-C stops everything.[/]\n")

    async def _stay(self) -> None:
        """Until told to stop; a router that ends is started again on the same port, a Redis of ours on the same socket."""
        port = int(self.url.rpartition(":")[2])
        while not self.stop.is_set():
            assert self.router is not None  # noqa: S101 -- _start has set it
            if self.router.ended() is not None:
                self.console.print(f"[yellow]router: ended with status {self.router.ended()}; starting it again[/]")
                await asyncio.sleep(_RESTART_PAUSE_S)
                self.router = self._start_router(port)
            if self.own_redis is not None and self.own_redis.pid is None:
                self._restart_redis(self.own_redis)
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self.stop.wait()
            except TimeoutError:
                continue

    def _restart_redis(self, redis: RedisServer) -> None:
        """It comes back empty; the workers see that and publish again, and routers go on with their mirrors."""
        self.console.print(f"[yellow]Redis: ended with status {redis.status}; starting it again[/]")
        try:
            redis.start(_REDIS_S)
        except NoRedisServer as error:
            self.console.print(f"[yellow]Redis: {escape(str(error))}[/]")

    async def _end(self) -> None:
        """Router first, so that no request is placed on a worker that is leaving."""
        self.console.print("Stopping: router, workers" + (", Ray" if self.host == "ray" else "") + " (Ctrl-C again kills them)")
        if self.scaling is not None:
            await self.scaling.aclose()
        if self.router is not None:
            await asyncio.to_thread(self.router.stop, ROUTER_DRAIN_S + _MARGIN_S)
        await self.fleet.aclose(within_s=WORKER_DRAIN_S)


def _without_password(url: str) -> str:
    """The URL as it may be written down."""
    head, at, tail = url.rpartition("@")
    return f"{head.partition('//')[0]}//***@{tail}" if at else url
