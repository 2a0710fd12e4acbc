"""SGLang's dialect against its documented formats; it has not been run against the real engine."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from penstock_core.endpoint import Role
from penstock_core.errors import Refused, TransferFailed
from penstock_core.profile import DEFAULT_PROFILE
from penstock_worker.engine import AllBlocksCleared, BlockEvent, BlockRemoved, BlockStored, EngineCall
from penstock_worker.engines.server.config import ServerConfig
from penstock_worker.engines.server.dialect import Ports
from penstock_worker.engines.server.engine import ServerEngine
from penstock_worker.engines.sglang.command import command, environment
from penstock_worker.engines.sglang.dialect import SgLang
from penstock_worker.worker_host import StartFailed

from tests.worker.sglang.sglang_double import PAGE_TOKENS, SgLangDouble

WAIT_S = 60.0
PORTS = Ports(8001, 8998, "ipc:///private/events", "ipc:///private/replay")
ROOM = b'{"prompt":"x","bootstrap_room":7,"bootstrap_host":"h","bootstrap_port":8998}'


def _config(**fields: object) -> ServerConfig:
    return ServerConfig(**{"model": "m", "profile": DEFAULT_PROFILE, "folder": "/models/m", **fields})  # type: ignore[arg-type]


@asynccontextmanager
async def _adopted(role: Role, mode: str, *, old_paths: bool = False) -> AsyncIterator[tuple[ServerEngine, SgLangDouble]]:
    double = SgLangDouble(mode, old_paths=old_paths)
    await double.start()
    config = _config(role=role, folder="", adopt_url=double.url, adopt_events=double.events, side_host="10.0.0.7")
    engine = ServerEngine(config, SgLang("m"))
    try:
        yield engine, double
    finally:
        await engine.stop()
        await double.stop()


def _call(body: bytes) -> EngineCall:
    return EngineCall(request_id="r", path="/v1/completions", body=body)


def test_the_command_line_follows_the_role_and_the_users_words_come_last() -> None:
    """A prefill engine listens where decode engines reach its bootstrap server; an undivided one knows of no roles."""
    words = command(_config(role=Role.PREFILL, side_host="10.0.0.7", args=("--tp", "2")), PORTS)
    assert words[-2:] == ["--tp", "2"]
    told = dict(zip(words[2::2], words[3::2], strict=False))
    assert (told["--host"], told["--disaggregation-mode"], told["--disaggregation-bootstrap-port"]) == ("10.0.0.7", "prefill", "8998")
    assert {"--enable-metrics", "--enable-cache-report"} <= set(words)
    events = json.loads(words[words.index("--kv-events-config") + 1])
    assert (events["publisher"], events["endpoint"], events["replay_endpoint"]) == ("zmq", PORTS.events, PORTS.replay)
    decode = command(_config(role=Role.DECODE, side_host="10.0.0.7"), PORTS)
    assert decode[decode.index("--host") + 1] == "127.0.0.1"
    assert "--disaggregation-bootstrap-port" not in decode
    assert "--disaggregation-mode" not in command(_config(), PORTS)
    assert environment(_config(claim_seconds=5.0), PORTS)["SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT"] == "5"


@pytest.mark.parametrize("old_paths", [False, True])
def test_what_the_server_says_of_itself_is_what_the_worker_registers(old_paths: bool) -> None:
    """Sizes from its metrics, the context from its models, the place to meet from its port and our address."""

    async def story() -> None:
        async with _adopted(Role.PREFILL, "prefill", old_paths=old_paths) as (engine, _):
            info = await engine.start()
            assert (info.block_tokens, info.kv_total_tokens, info.max_model_tokens) == (16, 4096, 2048)
            assert (info.connector, info.connector_facts) == ("sglang", {"bootstrap_host": "10.0.0.7", "bootstrap_port": 8998})
            assert info.kv_generation.startswith("sglang-0.5.6-")
            assert not info.exact, "no folder: its prompts cannot be laid out"
            load = engine.load()
            assert load.kv_used_tokens == 1024
            text = engine.metrics_text()
            assert 'vllm:num_requests_running{model_name="m"} 3.0' in text, "tensor-parallel ranks tell of the same requests"
            assert 'vllm:kv_cache_usage_perc{model_name="m"} 0.25' in text
            assert "sglang:cache_hit_rate" in text

    asyncio.run(story())


def test_an_undivided_engine_hands_nothing_over() -> None:
    """The router then never pairs it."""

    async def story() -> None:
        async with _adopted(Role.BOTH, "null") as (engine, _):
            info = await engine.start()
            assert (info.connector, info.connector_facts) == ("none", {})
            answer = await engine.answer(_call(b'{"prompt":"x"}'))
            assert answer.status == 200
            assert answer.facts is not None and answer.facts.prompt_tokens == 40

    asyncio.run(story())


def test_a_server_of_another_mode_is_refused_with_both_names() -> None:
    """A worker of role prefill around an undivided server would never hand anything over."""

    async def story() -> None:
        async with _adopted(Role.PREFILL, "null") as (engine, _):
            with pytest.raises(StartFailed, match="disaggregation_mode is 'null'; allowed: 'prefill'"):
                await engine.start()

    asyncio.run(story())


def test_a_divided_engine_takes_nothing_without_a_room_and_a_broken_transfer_asks_for_a_new_prefill() -> None:
    """SGLang answers 400 to the first, which is not the client's fault: it must go elsewhere."""

    async def story() -> None:
        async with _adopted(Role.DECODE, "decode") as (engine, double):
            await engine.start()
            with pytest.raises(Refused):
                await engine.answer(_call(b'{"prompt":"x"}'))
            assert double.bodies == []
            double.fails = 1
            with pytest.raises(TransferFailed):
                await engine.answer(_call(ROOM))

    asyncio.run(story())


def test_kv_events_are_heard_as_sglang_packs_them() -> None:
    """Positional arrays with and without a medium; pages on the host's memory do not count."""

    async def story() -> None:
        async with _adopted(Role.BOTH, "null") as (engine, double):
            heard: list[BlockEvent] = []

            def listener(events: Sequence[BlockEvent]) -> None:
                heard.extend(events)

            engine.on_block_events(listener)
            await engine.start()
            first, second = list(range(PAGE_TOKENS)), list(range(100, 100 + PAGE_TOKENS))
            async with asyncio.timeout(WAIT_S):
                while not heard:  # a publisher drops what it sends before somebody listens
                    await double.publish(["AllBlocksCleared"])
                    await asyncio.sleep(0.05)
            heard.clear()
            await double.publish(
                ["BlockStored", [-11], None, first, PAGE_TOKENS, None],
                ["BlockStored", [12], -11, second, PAGE_TOKENS, None, "GPU"],
                ["BlockStored", [13], 12, second, PAGE_TOKENS, None, "CPU"],
                ["BlockRemoved", [12], "GPU"],
            )
            async with asyncio.timeout(WAIT_S):
                while not any(isinstance(one, BlockRemoved) for one in heard):  # noqa: ASYNC110 -- heard on this same loop
                    await asyncio.sleep(0.02)
            told = [one for one in heard if not isinstance(one, AllBlocksCleared)]
            assert told == [
                BlockStored((2**64 - 11,), None, tuple(first)),
                BlockStored((12,), 2**64 - 11, tuple(second)),
                BlockRemoved((12,)),
            ]

    asyncio.run(story())
