"""vLLM's dialect: how it is started, what its figures are called, what its bodies say of transfers.

`assembly` hands it to the engine of `server`. Bodies and formats: protocol.md §4 and §6.
"""

import re
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from penstock_worker.engine import EngineInfo
from penstock_worker.engines.server.config import ServerConfig
from penstock_worker.engines.server.dialect import Get, Launch, Ports, Wish
from penstock_worker.engines.server.scrape import Gauges
from penstock_worker.engines.vllm.command import command, environment
from penstock_worker.engines.vllm.facts import engine_info, read_gauges


class _Params(msgspec.Struct):
    do_remote_prefill: bool = False
    do_remote_decode: bool = False


class _Body(msgspec.Struct):
    kv_transfer_params: _Params | None = None


_decode = msgspec.json.Decoder(_Body).decode


class Vllm:
    """Implements `server.dialect.Dialect`."""

    name = "vLLM"
    phases: ClassVar[Sequence[tuple[str, re.Pattern[bytes]]]] = (
        ("process", re.compile(rb"vLLM API server version|Starting vLLM API server|non-default args")),
        ("weights", re.compile(rb"Loading weights took|Model loading took")),
        ("warm_up", re.compile(rb"init engine .* took|Application startup complete")),
    )
    """Of newer versions some may match nothing; the phase is then not told."""

    def launch(self, config: ServerConfig, ports: Ports) -> Launch:
        return Launch(command(config, ports), environment(config, ports))

    def wish(self, body: bytes, config: ServerConfig) -> Wish:
        try:
            params = _decode(body).kv_transfer_params
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Wish()
        return Wish() if params is None else Wish(pulls=params.do_remote_prefill, hands_over=params.do_remote_decode)

    def gauges(self, text: str) -> Gauges:
        return read_gauges(text)

    def metrics(self, text: str, gauges: Gauges) -> str:
        return text

    def first_request(self, config: ServerConfig) -> tuple[str, bytes] | None:
        body = {"model": config.model, "prompt": "a", "max_tokens": 1, "temperature": 0}
        return "/v1/completions", msgspec.json.encode(body)

    async def info(self, config: ServerConfig, get: Get, ports: Ports | None, *, exact: bool) -> EngineInfo:
        return await engine_info(config, get, ports, exact=exact)
