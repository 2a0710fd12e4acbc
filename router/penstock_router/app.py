"""Builds a router from its settings and runs it: the object graph, the background tasks, and the orderly end.

`cli` calls `Router` (through its `run_router`); tests start one on a free port. Collaborators are passed in constructors here
and nowhere else. It knows no request.
"""

import asyncio
import logging
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, Protocol

from penstock_core.errors import Outcome
from penstock_dataplane.client import Client, ClientLimits
from penstock_dataplane.limits import ServerLimits
from penstock_dataplane.server import Server
from penstock_dataplane.wire import HeaderList

from penstock_router.admin import admin_app
from penstock_router.admission.bounds import Admission
from penstock_router.config import RouterConfig, Secrets, line_limits
from penstock_router.deliver import Deliverer
from penstock_router.director import Director
from penstock_router.dispatch import Dispatch
from penstock_router.endpoints import Directory, Prober
from penstock_router.given import GivenSource
from penstock_router.keys import KeyFileError, KeyRing
from penstock_router.legs import Legs
from penstock_router.metrics import UNKNOWN_MODEL, Figures, registry_of
from penstock_router.openai import error_body
from penstock_router.registered import RegisteredSource
from penstock_router.scheduling import Options

log = logging.getLogger(__name__)

_KEY_POLL_S = 1.0
_SERVER_OUTCOMES = {413: Outcome.BODY_TOO_LARGE, 503: Outcome.QUEUE_FULL, 500: Outcome.UPSTREAM_FAILED}


class Source(Protocol):
    """Something that tells the directory of endpoints."""

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


class Router:
    """One router process' parts. `start`, then `drain` or `close`."""

    def __init__(self, config: RouterConfig, secrets: Secrets, *, rng: Random | None = None) -> None:
        self.config = config
        self.figures = Figures()
        self.draining = False
        self.drain_asked = asyncio.Event()
        """Set by POST /admin/drain; the process assembly waits for it as for SIGTERM."""
        rng = rng or Random(SystemRandom().getrandbits(64))  # noqa: S311  ties and ids, no secrets
        self._secrets = secrets
        self.keys = KeyRing(Path(config.api_keys) if config.api_keys else None)
        self.client = Client(
            ClientLimits(connect_timeout_s=config.connect_timeout_s, max_connections_per_origin=config.connections_per_endpoint)
        )
        self.directory = Directory(
            policy=config.policy,
            options=Options(fitted=config.fitted_profiles),
            limits=line_limits(config),
            figures=self.figures,
            prober=Prober(self.client),
            rng=rng,
        )
        legs = Legs(self.client, self.directory, fleet_token=secrets.fleet_token, head_timeout_s=config.head_timeout_s)
        deliverer = Deliverer(legs, self.figures, stall_timeout_s=config.stall_timeout_s)
        self.director = Director(
            config=config,
            secrets=secrets,
            directory=self.directory,
            dispatch=Dispatch(legs, deliverer, self.figures, attempts=config.attempts, rng=rng),
            admission=Admission(config.active_requests),
            keys=self.keys,
            figures=self.figures,
            rng=rng,
        )
        admin = admin_app(
            directory=self.directory,
            director=self.director,
            registry=registry_of(self.figures),
            admin_key=secrets.admin_key,
            draining=lambda: self.draining,
            drain=self.drain_asked.set,
            scaling=self._scaling,
        )
        self.server = Server(
            self.director.handle,
            app=admin,
            limits=_server_limits(config),
            render_error=self._render_error,
        )
        server, figures = self.server, self.figures
        self.directory.more_coming = lambda: server.exchanges > figures.active
        self._sources: list[Source] = []
        self._key_poll: asyncio.Task[None] | None = None

    async def start(self) -> tuple[str, int]:
        """Find endpoints, then listen. Gives the bound (host, port); OSError if it cannot be had."""
        if self.config.endpoints:
            self._sources.append(GivenSource(self.config, self.directory, self.client))
        if self.config.redis_url:
            self._sources.append(RegisteredSource(self.config, self._secrets, self.directory, self.client))
        for source in self._sources:
            await source.start()
        if self.keys.required:
            self._key_poll = asyncio.get_running_loop().create_task(self._poll_keys())
        else:
            log.warning("no API key file is given: requests are not authenticated")
        address = await self.server.start(self.config.host, self.config.port)
        log.info("listening", extra={"facts": {"url": f"http://{address[0]}:{address[1]}"}})
        return address

    async def drain(self) -> bool:
        """Not ready, after `unready_s` no new connections, streams finish within `drain_s`, then close. True if none was cut."""
        self.draining = True
        await asyncio.sleep(self.config.unready_s)
        clean = await self.server.drain(asyncio.get_running_loop().time() + self.config.drain_s)
        await self.close()
        return clean

    async def close(self) -> None:
        """Cut everything and give every resource back."""
        self.draining = True
        await self.server.close()
        for source in self._sources:
            await source.aclose()
        self._sources.clear()
        await self.directory.aclose()
        if self._key_poll is not None:
            self._key_poll.cancel()
            await asyncio.gather(self._key_poll, return_exceptions=True)
        await self.client.aclose()

    async def _scaling(self, most: int) -> list[dict[str, Any]]:
        """Raises IndexUnavailable."""
        return [row for source in self._sources if isinstance(source, RegisteredSource) for row in await source.scaling(most)]

    async def _poll_keys(self) -> None:
        while True:
            await asyncio.sleep(_KEY_POLL_S)
            try:
                if self.keys.reload_if_changed():
                    log.info("API keys reloaded", extra={"facts": {"keys": len(self.keys)}})
            except KeyFileError as error:
                log.error("API keys not reloaded, the old ones stay", extra={"facts": {"why": str(error)}})
            except Exception:
                log.exception("reloading the API keys failed")

    def _render_error(self, status: int, message: str) -> tuple[HeaderList, bytes]:
        """What the server refuses before there is a request to hand over; counted like every other ending."""
        outcome = _SERVER_OUTCOMES.get(status, Outcome.BAD_REQUEST)
        self.figures.model(UNKNOWN_MODEL).outcomes[outcome] += 1
        return [(b"content-type", b"application/json")], error_body(outcome, message)


def _server_limits(config: RouterConfig) -> ServerLimits:
    return ServerLimits(
        header_bytes=config.header_bytes,
        body_bytes=config.body_bytes,
        max_connections=config.connections,
        header_timeout_s=config.header_timeout_s,
        body_timeout_s=config.body_timeout_s,
        idle_timeout_s=config.idle_timeout_s,
        write_stall_timeout_s=config.write_stall_timeout_s,
    )
