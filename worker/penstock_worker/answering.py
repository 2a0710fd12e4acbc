"""One `/v1/*` request: from the exchange to the engine and back, with the facts a router needs.

`host` calls `Answering.serve`. The response head waits for the engine's first output, so that a late refusal is still a status:
503 with `x-penstock-refuse` (`full`, `draining`, or `kv`: the KV of the prefill could not be fetched, prefill again). A client
that leaves cancels the task, before the head and after, and the engine then frees what it held. It knows no registry.
"""

import asyncio
import hmac
import logging
import secrets as random_source
from collections.abc import Callable
from typing import Any

import msgspec
from penstock_core.endpoint import Load
from penstock_core.errors import BadInput, PenstockError, Refused, TransferFailed
from penstock_core.facts import HEADER, REFUSE_HEADER, SALT_HEADER, TOKEN_HEADER, Facts, encode_facts
from penstock_dataplane.exchange import Exchange
from penstock_dataplane.request_parser import Request
from penstock_dataplane.wire import Headers

from penstock_worker.engine import Engine, EngineAnswer, EngineCall, EngineInfo
from penstock_worker.kv_follow import KvFollower
from penstock_worker.metrics import WorkerMetrics

log = logging.getLogger(__name__)

JSON_TYPE = (b"content-type", b"application/json")
REQUEST_ID = b"x-request-id"
CAPABILITY_PATHS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/rerank": "rerank",
}
MOST_PIECES_KEPT = 20_000
"""An answer in more pieces is sent all the same, but its text is not followed."""
_LONGEST_ID = 128
_LONGEST_SALT = 256


class _Asked(msgspec.Struct, frozen=True):
    model: str | None = None
    n: Any = None


_decode_asked = msgspec.json.Decoder(_Asked).decode


def openai_error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """OpenAI's error body."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def render_error(status: int, message: str) -> tuple[Headers, bytes]:
    """The look of the errors that the server itself answers."""
    return [JSON_TYPE], openai_error(status, message)


def holds_token(request: Request, token: str) -> bool:
    """Whether the request carries the fleet's internal token; never where there is none."""
    given = request.header(TOKEN_HEADER)
    return bool(token) and given is not None and hmac.compare_digest(given, token.encode())


class Answering:
    """Serves the requests of one engine. `running` answers are counted between awaits; `draining` is set by the host."""

    def __init__(
        self,
        engine: Engine,
        info: EngineInfo,
        follower: KvFollower,
        metrics: WorkerMetrics,
        *,
        load: Callable[[], Load],
        generation: str,
        fleet_token: str,
    ) -> None:
        self.running = 0
        self.draining = False
        self.idle = asyncio.Event()
        self.idle.set()
        self._engine = engine
        self._info = info
        self._models = frozenset((info.model, *info.adapters))
        self._follower = follower
        self._metrics = metrics
        self._load = load
        self._generation = generation
        self._token = fleet_token

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request, whatever becomes of it."""
        request_id = _request_id(exchange.request)
        self.running += 1
        self.idle.clear()
        try:
            await self._serve(exchange, request_id)
        except asyncio.CancelledError:
            self._metrics.aborted.inc()
            raise
        except BadInput as error:
            self._fail(exchange, request_id, 400, str(error), param=error.param)
        except Refused as error:
            self._refuse(exchange, request_id, error.reason, str(error))
        except TransferFailed as error:
            self._refuse(exchange, request_id, "kv", str(error))
        except PenstockError as error:  # AnswerCut before anything was sent
            self._fail(exchange, request_id, 503, str(error))
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()

    async def _serve(self, exchange: Exchange, request_id: bytes) -> None:
        request = exchange.request
        capability = CAPABILITY_PATHS.get(request.path)
        if capability is None or capability not in self._info.capabilities:
            served = ", ".join(path for path, name in CAPABILITY_PATHS.items() if name in self._info.capabilities)
            return self._fail(exchange, request_id, 404, f"path is {request.path!r}; this worker serves {served}")
        if request.method != "POST":
            return self._fail(exchange, request_id, 405, f"method is {request.method}; allowed: POST")
        if self.draining:
            raise Refused("draining")
        asked = _asked(request.body)
        model = self._info.model if asked.model is None else asked.model
        if model not in self._models:
            message = f"model is {model!r}; this worker serves {', '.join(sorted(self._models))}"
            return self._fail(exchange, request_id, 404, message, param="model", code="model_not_found")
        salt = request.header(SALT_HEADER) or b""
        if salt and (not holds_token(request, self._token) or len(salt) > _LONGEST_SALT):
            message = f"{SALT_HEADER.decode()} needs the fleet's token, and at most {_LONGEST_SALT} bytes"
            return self._fail(exchange, request_id, 403, message)
        call = EngineCall(request_id=request_id.decode(), path=request.path, body=request.body, salt=salt.decode("latin-1"))
        one_choice = asked.n is None or asked.n == 1
        await self._run(exchange, call, model, one_choice)

    async def _run(self, exchange: Exchange, call: EngineCall, model: str, one_choice: bool) -> None:
        """Engine and translator, and the chain given back however it ends."""
        name = await self._follower.begin(call, model)
        pieces: list[bytes] | None = None
        try:
            answer = await self._engine.answer(call)
            streamed = answer.content_type.startswith(b"text/event-stream")
            try:
                pieces = await self._send(exchange, call, answer, name, streamed)
            finally:
                await answer.abort()
        finally:
            if name is not None and pieces is not None and one_choice:
                self._follower.finish(name, call, model, pieces, streamed=streamed)
            else:
                self._follower.forget(name)

    async def _send(
        self, exchange: Exchange, call: EngineCall, answer: EngineAnswer, name: str | None, streamed: bool
    ) -> list[bytes] | None:
        """Pass the answer on; gives its pieces if it went out whole, and there are not too many."""
        headers = [
            (b"content-type", answer.content_type),
            (HEADER, self._facts(answer, name)),
            (REQUEST_ID, call.request_id.encode()),
        ]
        pieces: list[bytes] = []
        if not streamed:
            pieces = [piece async for piece in answer]
            exchange.respond(answer.status, headers, b"".join(pieces))
            return pieces
        exchange.start(answer.status, [*headers, (b"cache-control", b"no-cache")])
        try:
            async for piece in answer:
                if len(pieces) <= MOST_PIECES_KEPT:
                    pieces.append(piece)
                exchange.write(piece)
                if not exchange.writable:
                    await exchange.drain()
        except PenstockError as error:
            log.warning("a stream was cut", extra={"facts": {"request_id": call.request_id, "why": str(error)}})
            exchange.write(b"event: error\ndata: " + openai_error(500, str(error)) + b"\n\n")
            exchange.abort()
            return None
        exchange.finish()
        return pieces if len(pieces) <= MOST_PIECES_KEPT else None

    def _facts(self, answer: EngineAnswer, name: str | None) -> bytes:
        known, load = answer.facts, self._load()
        return encode_facts(
            Facts(
                hit_chunks=0 if known is None else self._follower.hit_chunks(name, known.hit_tokens),
                hit_tokens=0 if known is None else known.hit_tokens,
                prompt_tokens=0 if known is None else known.prompt_tokens,
                running=load.running,
                waiting=load.waiting,
                prefill_tokens=load.prefill_tokens,
                kv_used=load.kv_used_tokens,
                kv_total=load.kv_total_tokens,
                generation=self._generation,
            )
        )

    def _refuse(self, exchange: Exchange, request_id: bytes, reason: str, message: str) -> None:
        self._metrics.refused.labels(reason).inc()
        if not exchange.started:
            headers = [JSON_TYPE, (REFUSE_HEADER, reason.encode()), (REQUEST_ID, request_id)]
            exchange.respond(503, headers, openai_error(503, message, code=f"refused_{reason}"))

    def _fail(
        self, exchange: Exchange, request_id: bytes, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        if not exchange.started:
            exchange.respond(status, [JSON_TYPE, (REQUEST_ID, request_id)], openai_error(status, message, param=param, code=code))


def _request_id(request: Request) -> bytes:
    """The router's id, or a new one for a request that has none that can be used."""
    given = request.header(REQUEST_ID)
    if given and len(given) <= _LONGEST_ID and given.isascii() and given.decode().isprintable():
        return given
    return random_source.token_hex(8).encode()


def _asked(body: bytes) -> _Asked:
    try:
        return _decode_asked(body)
    except (msgspec.DecodeError, UnicodeError) as error:
        param = "model" if "`$.model`" in str(error) else None
        raise BadInput(f"the body is not a JSON object with a text in `model`: {error}", param=param) from None
