"""Brings an upstream's answer to the client: whole answers in one write, streams spliced chunk by chunk.

`dispatch` calls `deliver` with a 2xx response. As long as the client has no byte, a failure is LegFailed and another
endpoint is tried; after the first byte a broken stream ends with an error event and a cut connection, never silently.
"""

import asyncio
from functools import lru_cache

from penstock_core.endpoint import Endpoint, Load
from penstock_core.errors import Outcome
from penstock_core.facts import HEADER as FACTS_HEADER
from penstock_core.facts import Facts, decode_facts
from penstock_dataplane.client import Response
from penstock_dataplane.errors import UpstreamError
from penstock_dataplane.relay import Ending, relay
from penstock_dataplane.wire import RESPONSE_FRAMING, EncodedHeaders, HeaderList, encode_headers, header_block

from penstock_router.call import Call, LegFailed
from penstock_router.legs import Legs, out_of_time
from penstock_router.metrics import Figures
from penstock_router.openai import CHAT, COMPLETIONS, error_event, is_object, merge_usage, read_usage
from penstock_router.stream_tap import StreamTap

_LEAST_REPORT_INTERVAL_S = 0.05
_GENERATION = frozenset({CHAT, COMPLETIONS})
_DROPPED = RESPONSE_FRAMING | {b"x-request-id", b"date"}


@lru_cache(maxsize=256)
def _encoded(headers: tuple[tuple[bytes, bytes], ...]) -> EncodedHeaders:
    """What is left of an engine's headers is nearly always the same."""
    return EncodedHeaders(header_block(headers, RESPONSE_FRAMING))


def client_headers(call: Call, upstream: HeaderList) -> EncodedHeaders:
    """The upstream's response headers without those between router and worker, with the request id and the explanation."""
    kept = [pair for pair in upstream if pair[0] not in _DROPPED and not pair[0].startswith(b"x-penstock-")]
    headers = _encoded(tuple(kept)) + b"x-request-id: %b\r\n" % call.request_id
    if call.explain:
        headers += encode_headers([(b"x-penstock-placement", explanation(call))])
    return EncodedHeaders(headers)


def explanation(call: Call) -> bytes:
    """The explain header's value: `prefill=<id>;decode=<id>;hit_tokens=<n>;ttft_ms=<predicted>;reason=<word>`."""
    placement = call.placement
    if placement is None:
        return b"none"
    prefill = placement.prefill.id if placement.prefill else ""
    decode = placement.decode.id if placement.decode else ""
    ttft = f"{placement.ttft_s * 1e3:.1f}" if placement.ttft_s is not None else ""
    text = f"prefill={prefill};decode={decode};hit_tokens={placement.hit_tokens};ttft_ms={ttft};reason={placement.reason}"
    return text.encode("ascii", "replace")


def learn(call: Call, endpoint: Endpoint, facts: Facts, now: float) -> None:
    """What a worker counted and reported with its answer: the request's true tokens, the model's ratio, the worker's load."""
    if facts.prompt_tokens:
        call.cached_tokens = facts.hit_tokens
        call.prompt_tokens = facts.prompt_tokens
        call.served.ratio.learn(len(call.chat.canonical), facts.prompt_tokens)
        if call.booking is not None:
            call.booking.facts(facts.hit_tokens, facts.prompt_tokens, now)
    served = call.served
    if now - served.reported_s.get(endpoint.id, -1.0) >= _LEAST_REPORT_INTERVAL_S:
        served.reported_s[endpoint.id] = now
        load = Load(facts.running, facts.waiting, facts.prefill_tokens, facts.kv_used, facts.kv_total)
        served.scheduler.report(endpoint.id, load, now)


class Deliverer:
    """Delivers answers; one a router."""

    def __init__(self, legs: Legs, figures: Figures, *, stall_timeout_s: float) -> None:
        self._legs = legs
        self._figures = figures
        self._stall_timeout_s = stall_timeout_s

    async def deliver(self, call: Call, endpoint: Endpoint, response: Response) -> None:
        """Answer the client from `response`. Sets the outcome; raises LegFailed or Ended while the client has no byte."""
        now = call.now()
        facts = decode_facts(response.header(FACTS_HEADER))
        if facts is not None and call.prefill_usage is None:
            learn(call, endpoint, facts, now)
        stream = call.chat.stream and (response.header(b"content-type") or b"").startswith(b"text/event-stream")
        if response.complete and not stream:
            if call.booking is not None:
                call.booking.answered(now)
            self._whole(call, endpoint, response, response.take())
            return
        response.set_waits(call.deadline_s, self._stall_timeout_s)
        if stream:
            await self._stream(call, endpoint, response)
            return
        if call.booking is not None:
            call.booking.first_token(now)
        try:
            body = await response.read()
        except UpstreamError as error:
            raise self._legs.failure(call, endpoint, error) from None
        self._whole(call, endpoint, response, body)

    def _whole(self, call: Call, endpoint: Endpoint, response: Response, body: bytes) -> None:
        if call.chat.path in _GENERATION:
            call.usage, _ = read_usage(body)
            if call.usage is None and not is_object(body):
                raise LegFailed(endpoint, "garbage", f"answered {response.status} with a body that is no JSON object")
            if call.prefill_usage is not None:
                body = merge_usage(body, call.prefill_usage)
        if call.exchange.started:  # with comments, while the client of a stream waited for a first replica
            raise LegFailed(endpoint, "garbage", "answered whole where a stream was asked for")
        call.outcome = Outcome.OK
        call.exchange.respond(response.status, client_headers(call, response.headers), body)

    async def _stream(self, call: Call, endpoint: Endpoint, response: Response) -> None:
        generation = call.chat.path in _GENERATION
        itl_s = self._figures.model(call.served.name).itl
        tap = StreamTap(call, response.status, client_headers(call, response.headers), itl_s, edits=generation)
        # Without a length or chunks, only the end mark tells a whole answer from one that was cut.
        framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in response.headers)
        exchange = call.exchange
        result = await relay(response, exchange, tap, finish=False)
        if result.ending is Ending.CLIENT_GONE:
            call.outcome = Outcome.CLIENT_GONE
        elif result.error is not None:
            if not call.begun:
                _cancel_when_client_leaves(call)
                raise self._legs.failure(call, endpoint, result.error)
            late = call.now() >= call.deadline_s
            message = out_of_time(call).message if late else "the answer broke off: the upstream failed"
            await self._break_off(call, Outcome.DEADLINE_EXCEEDED if late else Outcome.UPSTREAM_FAILED, message)
            call.message = f"{message} ({result.error})"  # for the log: what an upstream is called and says is not the client's
        elif not call.begun:
            _cancel_when_client_leaves(call)
            raise LegFailed(endpoint, "garbage", "answered an empty stream")
        elif generation and not framed and not tap.ended_with_done:
            await self._break_off(call, Outcome.UPSTREAM_FAILED, "the answer broke off: the upstream closed before its end mark")
        else:
            call.outcome = Outcome.OK
            exchange.finish(tap.rest)

    async def _break_off(self, call: Call, outcome: Outcome, message: str) -> None:
        """End a stream that the client has begun to read: an error event, then the connection closes."""
        call.outcome, call.message = outcome, message
        exchange = call.exchange
        exchange.write(error_event(outcome, message))
        await exchange.drain()
        exchange.abort()


def _cancel_when_client_leaves(call: Call) -> None:
    """A relay that has begun takes the client's leaving upon itself; when it fails and another try follows, the task must."""
    task = asyncio.current_task()
    if task is not None:
        call.exchange.on_disconnect(lambda: _cancel(task))


def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
