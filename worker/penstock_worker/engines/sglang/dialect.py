"""SGLang's dialect: how it is started, what its figures are called, what its bodies say of transfers.

`assembly` hands it to the engine of `server`. A prefill and a decode engine meet by a bootstrap room (protocol.md §4); an engine of
either role runs nothing without one.
"""

import re
from collections.abc import Sequence
from typing import ClassVar

import msgspec
from penstock_core.endpoint import Role

from penstock_worker.engine import EngineInfo
from penstock_worker.engines.server.config import ServerConfig
from penstock_worker.engines.server.dialect import Get, Launch, Ports, Wish
from penstock_worker.engines.server.scrape import Gauges
from penstock_worker.engines.sglang.command import command, environment, listens_on
from penstock_worker.engines.sglang.facts import common_names, engine_info, read_gauges


class _Body(msgspec.Struct):
    bootstrap_room: int | None = None


_decode = msgspec.json.Decoder(_Body).decode


class SgLang:
    """Implements `server.dialect.Dialect`."""

    name = "SGLang"
    phases: ClassVar[Sequence[tuple[str, re.Pattern[bytes]]]] = (
        ("process", re.compile(rb"server_args=|Init torch distributed begin")),
        ("weights", re.compile(rb"Load weight end")),
        ("warm_up", re.compile(rb"The server is fired up")),
    )
    """Of newer versions some may match nothing; the phase is then not told."""

    def __init__(self, model: str) -> None:
        """`model`: its label in metrics."""
        self._model = model

    def launch(self, config: ServerConfig, ports: Ports) -> Launch:
        return Launch(command(config, ports), environment(config, ports), listens_on(config))

    def wish(self, body: bytes, config: ServerConfig) -> Wish:
        if config.role is Role.BOTH:
            return Wish()
        try:
            room = _decode(body).bootstrap_room
        except (msgspec.DecodeError, UnicodeDecodeError):
            room = None
        return Wish(pulls=room is not None and config.role is Role.DECODE, served=room is not None)

    def gauges(self, text: str) -> Gauges:
        return read_gauges(text)

    def metrics(self, text: str, gauges: Gauges) -> str:
        return common_names(text, gauges, self._model)

    def first_request(self, config: ServerConfig) -> tuple[str, bytes] | None:
        return None  # it warms up before /health says 200, in a divided role with a bootstrap of its own making

    async def info(self, config: ServerConfig, get: Get, ports: Ports | None, *, exact: bool) -> EngineInfo:
        return await engine_info(config, get, ports, exact=exact)
