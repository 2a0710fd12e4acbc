"""The adapter against a server that speaks vLLM's surface: failures become what the contract says, health is noticed.

A small real HTTP server plays the parts of vLLM that a real one cannot be made to show at will; real engines are in tests/engines.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from penstock_core.errors import Refused, TransferFailed
from penstock_core.profile import DEFAULT_PROFILE
from penstock_dataplane.exchange import Exchange
from penstock_dataplane.server import Server
from penstock_worker.engine import AnswerCut, EngineCall
from penstock_worker.engines.server.config import ServerConfig
from penstock_worker.engines.server.engine import ServerEngine
from penstock_worker.engines.vllm.dialect import Vllm
from penstock_worker.worker_host import StartFailed

WAIT_S = 60.0
SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json")]
METRICS = b"""vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:nixl_bytes_transferred_sum{engine="0"} 1.5e+06
vllm:cache_config_info{block_size="32",cache_dtype="auto",num_gpu_blocks="100",engine="0"} 1.0
"""
Handle = Callable[[Exchange], Awaitable[None]]


class Played:
    """vLLM's surface; `complete` answers completions, `healthy` is its health."""

    def __init__(self, complete: Handle) -> None:
        self.healthy = True
        self.asked: list[bytes] = []
        self._complete = complete

    async def serve(self, exchange: Exchange) -> None:
        path = exchange.request.path
        if path == "/health":
            exchange.respond(200 if self.healthy else 503, [], b"")
        elif path == "/v1/models":
            cards = [{"id": "m", "max_model_len": 2048}, {"id": "sql", "parent": "m"}]
            exchange.respond(200, JSON, msgspec.json.encode({"data": cards}))
        elif path == "/version":
            exchange.respond(200, JSON, b'{"version":"9.9"}')
        elif path == "/metrics":
            exchange.respond(200, [], METRICS)
        elif b'"max_tokens":1,' in exchange.request.body:
            exchange.respond(200, JSON, b'{"choices":[]}')
        else:
            self.asked.append(exchange.request.body)
            await self._complete(exchange)


@asynccontextmanager
async def _adopted(complete: Handle) -> AsyncIterator[tuple[ServerEngine, Played]]:
    played = Played(complete)
    server = Server(played.serve, handler_prefixes=("/",), render_error=lambda status, message: (JSON, message.encode()))
    _, port = await server.start("127.0.0.1", 0)
    config = ServerConfig(model="m", profile=DEFAULT_PROFILE, adopt_url=f"http://127.0.0.1:{port}", claim_seconds=2.0)
    engine = ServerEngine(config, Vllm())
    try:
        yield engine, played
    finally:
        await engine.stop()
        await server.close()


def _call(body: bytes = b'{"prompt":"x","stream":true}', salt: str = "") -> EngineCall:
    return EngineCall(request_id="r", path="/v1/completions", body=body, salt=salt)


async def _nothing(exchange: Exchange) -> None:
    exchange.respond(200, JSON, b'{"usage":{"prompt_tokens":7,"prompt_tokens_details":{"cached_tokens":4}}}')


def test_what_the_server_says_of_itself_is_what_the_worker_registers() -> None:
    """Sizes from its metrics, the context from its models, adapters by their parent; not exact without its events."""

    async def story() -> None:
        async with _adopted(_nothing) as (engine, _):
            info = await engine.start()
            assert (info.block_tokens, info.kv_total_tokens, info.max_model_tokens) == (32, 3200, 2048)
            assert (info.adapters, info.exact) == (("sql",), False)
            assert info.kv_generation.startswith("vllm-9.9-")

    asyncio.run(story())


def test_a_server_of_another_model_is_refused_with_both_names() -> None:
    """A wrong URL is found at the start."""

    async def story() -> None:
        async with _adopted(_nothing) as (engine, _):
            engine.config = msgspec.structs.replace(engine.config, model="other")
            with pytest.raises(StartFailed, match="serves m, sql; allowed: 'other'"):
                await engine.start()

    asyncio.run(story())


@pytest.mark.parametrize(("python", "says"), [("/no/such/python", "engine_python is"), (sys.executable, "No module named 'vllm'")])
def test_a_worker_whose_engine_cannot_start_says_why_in_words(tmp_path: Path, python: str, says: str) -> None:
    """`penstock worker` ends with status 1 and a message that names what is wrong, not with a traceback."""
    settings = ["--set=engine=vllm", f"--set=model_folder={tmp_path}", f"--set=engine_python={python}"]
    command = [sys.executable, "-m", "penstock_cli.main", "worker", *settings]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert ended.returncode == 1
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


async def _error_event(exchange: Exchange) -> None:
    exchange.start(200, SSE)
    exchange.write(b'data: {"error":{"message":"pull failed"}}\n\n')
    exchange.finish()


async def _error_status(exchange: Exchange) -> None:
    exchange.respond(500, JSON, b'{"error":{"message":"dead"}}')


async def _hang_up(exchange: Exchange) -> None:
    exchange.abort()


@pytest.mark.parametrize("fail", [_error_event, _error_status, _hang_up])
def test_a_failure_before_the_first_output_is_a_refusal_and_a_failed_pull_asks_for_a_new_prefill(fail: Handle) -> None:
    """Never a broken answer: the router tries elsewhere, or prefills again."""

    async def story() -> None:
        async with _adopted(fail) as (engine, _):
            await engine.start()
            with pytest.raises(Refused, match="epoch"):
                await engine.answer(_call())
            with pytest.raises(TransferFailed):
                await engine.answer(_call(b'{"prompt":"x","stream":true,"kv_transfer_params":{"do_remote_prefill":true}}'))
            assert (engine.load().running, engine.load().waiting) == (0, 0)

    asyncio.run(story())


async def _half(exchange: Exchange) -> None:
    exchange.start(200, SSE)
    exchange.write(b"data: {}\n\ndata: {}\n\nda")
    await exchange.drain()
    exchange.abort()


def test_a_stream_cut_by_the_engine_ends_with_answer_cut_after_what_came() -> None:
    """Whole events are passed on, half ones are not."""

    async def story() -> None:
        async with _adopted(_half) as (engine, _):
            await engine.start()
            answer = await engine.answer(_call())
            pieces = []
            with pytest.raises(AnswerCut):
                async for piece in answer:
                    pieces.append(piece)  # noqa: PERF401 -- a comprehension would lose what came before the cut
            assert set(pieces) <= {b"data: {}\n\n"}
            assert engine.load().running == 0

    asyncio.run(story())


async def _not_found(exchange: Exchange) -> None:
    exchange.respond(404, JSON, b'{"error":{"message":"no such thing"}}')


def test_the_clients_own_fault_is_passed_on_as_vllm_says_it() -> None:
    """Status and body are its."""

    async def story() -> None:
        async with _adopted(_not_found) as (engine, _):
            await engine.start()
            answer = await engine.answer(_call())
            assert answer.status == 404
            assert b"no such thing" in b"".join([piece async for piece in answer])

    asyncio.run(story())


def test_whole_answers_have_facts_and_a_salt_reaches_the_engine() -> None:
    """Usage says what was cached; the tenant's salt is the engine's `cache_salt`."""

    async def story() -> None:
        async with _adopted(_nothing) as (engine, played):
            await engine.start()
            answer = await engine.answer(_call(b'{"prompt":"x"}', salt="tenant"))
            assert answer.facts is not None
            assert (answer.facts.prompt_tokens, answer.facts.hit_tokens) == (7, 4)
            assert msgspec.json.decode(played.asked[-1])["cache_salt"] == "tenant"

    asyncio.run(story())


def test_a_core_that_died_behind_a_live_port_is_noticed() -> None:
    """`/health` fails time after time while the port answers: the engine says why, and refuses from then on."""

    async def story() -> None:
        async with _adopted(_nothing) as (engine, played):
            await engine.start()
            played.healthy = False
            why = await asyncio.wait_for(engine.died(), WAIT_S)
            assert "/health" in why
            with pytest.raises(Refused, match="epoch"):
                await engine.answer(_call())

    asyncio.run(story())


def test_a_finished_prefill_stays_unclaimed_no_longer_than_its_claim() -> None:
    """A drain waits for decode workers that may come, not for ever."""

    async def story() -> None:
        async with _adopted(_nothing) as (engine, _):
            await engine.start()
            answer = await engine.answer(_call(b'{"prompt":"x","kv_transfer_params":{"do_remote_decode":true}}'))
            async for _piece in answer:
                pass
            assert engine.handover().unclaimed_tokens == 7
            async with asyncio.timeout(WAIT_S):
                while engine.handover().unclaimed_tokens:  # noqa: ASYNC110 -- the claim runs out by the clock
                    await asyncio.sleep(0.05)

    asyncio.run(story())
