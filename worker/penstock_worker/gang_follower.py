"""A Pod of a gang that is not the leading one: it joins the leader's Ray, lends it a place for one rank, and leaves when the gang may.

`serving` runs it where `gang_rank` is above 0. It polls the leader's page; what follows from the news is decided in `gang`. Ray's part
here is a child process, ended and begun anew whenever the leader is another incarnation.
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
from penstock_core.facts import TOKEN_HEADER
from penstock_dataplane.client import Client
from penstock_dataplane.errors import UpstreamError
from penstock_dataplane.pool import Origin
from penstock_process.system import ends_with

from penstock_worker.config import WorkerConfig, WorkerSecrets, ray_environment
from penstock_worker.gang import RAY_OBJECT_STORE_BYTES, GangNews, Joined, Step, may_end, next_step, rank_resource, serves
from penstock_worker.gang_page import DRAIN_PATH, NEWS_PATH, GangPage

log = logging.getLogger(__name__)

_POLL_S = 0.5
_CALL_S = 2.0
_NEWS_BYTES = 64 * 1024
_STOP_S = 3.0
_BEYOND_DRAIN_S = 10.0
_KEPT_LOG_BYTES = 2_000

_decoder = msgspec.json.Decoder(GangNews)


class GangFollower:
    """See the module. `run` once; `tell` at each signal."""

    def __init__(self, config: WorkerConfig, secrets: WorkerSecrets) -> None:
        self._config = config
        self._secrets = secrets
        self._page = GangPage(secrets.fleet_token, lambda: self.ready)
        self._client = Client()
        self._folder = tempfile.TemporaryDirectory(prefix="penstock-gang-", ignore_cleanup_errors=True)
        self._ray: subprocess.Popen[bytes] | None = None
        self._incarnation = ""
        self._known_page = ""
        self.ready = False
        """Whether the gang serves."""
        self._leaving = asyncio.Event()
        self._at_once = asyncio.Event()

    def tell(self) -> None:
        """The first signal has the gang drain, a second one ends at once."""
        if self._leaving.is_set():
            self._at_once.set()
        self._leaving.set()

    async def run(self) -> None:
        """Until told to end and the gang has drained. Raises OSError where the address is taken."""
        await self._page.start(self._config.listen_host, self._config.gang_port)
        try:
            await self._follow()
            await self._leave()
        finally:
            await self._end_ray()
            await self._page.aclose()
            await self._client.aclose()
            self._folder.cleanup()

    async def _follow(self) -> None:
        while not self._leaving.is_set():
            news = await self._call("GET", NEWS_PATH)
            if next_step(self._joined(), news) is Step.JOIN and news is not None:
                self.ready = False
                await self._end_ray()
                self._join(news)
            self.ready = serves(self._joined(), news)
            await _within(self._leaving, _POLL_S)

    async def _leave(self) -> None:
        """Have the leader drain the gang, and wait until it has."""
        silent = 0
        deadline_s = asyncio.get_running_loop().time() + self._config.drain_s + _BEYOND_DRAIN_S
        told = False
        while not self._at_once.is_set() and asyncio.get_running_loop().time() < deadline_s:
            news = await self._call("GET", NEWS_PATH) if told else await self._call("POST", DRAIN_PATH)
            told = told or news is not None
            silent = 0 if news is not None else silent + 1
            if may_end(self._joined(), news, silent):
                break
            await _within(self._at_once, _POLL_S)
        log.info("leaving", extra={"facts": {"rank": self._config.gang_rank}})

    def _joined(self) -> Joined | None:
        return None if self._ray is None else Joined(self._incarnation, self._ray.poll() is None)

    def _join(self, news: GangNews) -> None:
        """Start Ray's part of this Pod. It takes seconds to be there; the leader places the rank when it is."""
        config = self._config
        words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", "--include-log-monitor=false"]
        words += [f"--address={news.ray_address}", f"--node-ip-address={config.node_address}", "--num-cpus=1"]
        words += [f"--num-gpus={config.gang_gpus}", f"--object-store-memory={RAY_OBJECT_STORE_BYTES}"]
        words.append(f"--resources={json.dumps({rank_resource(config.gang_rank): 1})}")
        with self._log_path.open("wb") as said:
            self._ray = subprocess.Popen(  # noqa: S603 -- our own interpreter and Ray's own command
                words,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**os.environ, **ray_environment(self._secrets)},
                start_new_session=True,
                preexec_fn=ends_with(os.getpid()),  # noqa: PLW1509 -- one prctl call, no lock is taken
            )
        self._incarnation, self._known_page = news.incarnation, news.page
        log.info("joining", extra={"facts": {"rank": config.gang_rank, "ray": news.ray_address, "incarnation": news.incarnation}})

    @property
    def _log_path(self) -> Path:
        return Path(self._folder.name) / "ray.log"

    async def _end_ray(self) -> None:
        ray, self._ray = self._ray, None
        if ray is None:
            return
        if ray.poll() not in (None, 0):
            said = self._log_path.read_bytes()[-_KEPT_LOG_BYTES:].decode(errors="replace").strip()
            log.warning("Ray has ended here", extra={"facts": {"status": ray.poll(), "said": said}})
        ray.terminate()
        for pause_s in (_STOP_S, _STOP_S):
            try:
                await asyncio.to_thread(ray.wait, pause_s)
                return
            except subprocess.TimeoutExpired:
                ray.kill()  # the kernel takes Ray's own children with it

    async def _call(self, method: str, path: str) -> GangNews | None:
        """The leader's news; by the address last known first, then by its name. None: no answer."""
        for page in dict.fromkeys((self._known_page, f"http://{self._config.gang_leader}")):
            try:
                if page:
                    return await self._ask(page, method, path)
            except (UpstreamError, OSError, msgspec.DecodeError) as error:
                log.debug("the leader does not answer at %s: %s", page, error)
        return None

    async def _ask(self, page: str, method: str, path: str) -> GangNews:
        deadline_s = asyncio.get_running_loop().time() + _CALL_S
        headers = [(TOKEN_HEADER, self._secrets.fleet_token.encode())]
        response = await self._client.request(Origin.parse(page), method, path, headers, deadline_s=deadline_s)
        return _decoder.decode(await response.read(_NEWS_BYTES))


async def _within(event: asyncio.Event, seconds: float) -> None:
    """Until it is set, `seconds` at most."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
