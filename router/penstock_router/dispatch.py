"""Carries a request out: one leg or two, the next placement when one fails, and an end to the trying.

The director calls `run` with an admitted Call. Decode-only is one POST; with a prefill endpoint the prefill leg comes first
(or runs beside, as its connector says), and what fails on the way is tried elsewhere as long as the client has no byte.
"""

import asyncio
from collections.abc import Mapping
from random import Random
from typing import Any

import msgspec
from penstock_core.endpoint import Endpoint
from penstock_core.errors import Outcome
from penstock_core.facts import HEADER as FACTS_HEADER
from penstock_core.facts import decode_facts
from penstock_dataplane.client import Response
from penstock_dataplane.errors import UpstreamError

from penstock_router.admission.line import Waiting
from penstock_router.call import Call, Ended, LegFailed
from penstock_router.deliver import Deliverer, learn
from penstock_router.legs import Legs, out_of_time
from penstock_router.metrics import Figures
from penstock_router.openai import CAPABILITIES, decode_body, prefill_body, read_transfer_params, read_usage, stream_body
from penstock_router.scheduling import Booking
from penstock_router.transfer import Connector, TransferBroken, connector_named

_PREFILL_ANSWER_BYTES = 8 << 20
_MOST_PREFILL_ENDPOINTS = 2
_LATE_USAGE_S = 0.5


class Dispatch:
    """Carries out calls; one a router. It keeps nothing between calls."""

    def __init__(self, legs: Legs, deliverer: Deliverer, figures: Figures, *, attempts: int, rng: Random) -> None:
        self._legs = legs
        self._deliverer = deliverer
        self._figures = figures
        self._attempts = attempts
        self._rng = rng

    async def run(self, call: Call, waiting: Waiting) -> None:
        """Answer the call from the best placement that works. Raises Ended or Answered; `call.booking` is left to the caller."""
        last: LegFailed | None = None
        come_again_s: list[int | None] = []
        while call.tried < self._attempts:
            booking = await self._place(call, waiting)
            if booking is None:
                break
            if last is not None:
                self._figures.retried(last.reason)
            call.tried += 1
            try:
                placement = booking.placement
                if placement.prefill is None and placement.decode is not None and not call.prefill_reason:
                    await self._undivided(call, placement.decode)  # most requests
                else:
                    await self._carry_out(call, booking)
                return
            except LegFailed as failed:
                last = failed
                come_again_s.append(failed.come_again_s)
                self._give_up_placement(call, failed)
        told = [seconds for seconds in come_again_s if seconds is not None]
        if told and len(told) == len(come_again_s):
            said = f"every endpoint of {call.served.name} that was tried ({call.tried}) has too many requests"
            raise Ended(Outcome.QUEUE_FULL, said, retry_after_s=min(told), detail=f"{last}")
        raise self._gave_up(call, last)

    async def _place(self, call: Call, waiting: Waiting) -> Booking | None:
        if call.exchange.gone:
            raise Ended(Outcome.CLIENT_GONE, "the client left")
        if (call.tried or call.held_s) and call.now() >= call.deadline_s:
            raise out_of_time(call)
        if call.tried:
            ask = waiting.ask
            ask = msgspec.structs.replace(ask, excluded=call.excluded, undivided=ask.undivided or call.undivided)
            booking = call.served.turn.place(ask)
        else:  # as soon as there is room for it
            await call.served.turn.enter(waiting)
            turned, booking = waiting.turned, waiting.booking
            if turned is not None:
                raise Ended(turned.outcome, turned.message, retry_after_s=turned.retry_after_s)
        if booking is not None:
            placement = booking.placement
            now = call.now()
            call.booking, call.placement, call.placed_s = booking, placement, now
            target = placement.prefill or placement.decode
            if call.keys is not None and target is not None:
                call.served.cache.book(target, call.keys, now)
        return booking

    def _give_up_placement(self, call: Call, failed: LegFailed) -> None:
        call.excluded |= {failed.endpoint.id}
        if call.booking is not None:
            call.booking.done(call.now())
            call.booking = None

    def _gave_up(self, call: Call, last: LegFailed | None) -> Ended:
        model = call.served.name
        if last is None:
            declared = {capability for one in call.served.live for capability in one.record.capabilities}
            if declared and call.chat.capability not in declared:
                allowed = ", ".join(path for path, capability in CAPABILITIES.items() if capability in declared)
                return Ended(Outcome.BAD_REQUEST, f"path is {call.chat.path}; allowed for {model}: {allowed}")
            return Ended(Outcome.NO_ENDPOINT, f"no endpoint of {model} can take this request now (0 placements tried)", retry_after_s=1)
        said = f"{call.tried} placement{'s' if call.tried != 1 else ''} tried, the last failed: {last.reason}"
        if last.reason.startswith("refused"):
            return Ended(Outcome.NO_ENDPOINT, f"no endpoint of {model} takes this request now; {said}", retry_after_s=1, detail=f"{last}")
        return Ended(Outcome.UPSTREAM_FAILED, f"no endpoint of {model} could answer; {said}", detail=f"{last}")

    async def _carry_out(self, call: Call, booking: Booking) -> None:
        placement = booking.placement
        if placement.prefill is None:
            if placement.decode is None:
                raise Ended(Outcome.NO_ENDPOINT, f"no endpoint of {call.served.name} can decode now", retry_after_s=1)
            if call.prefill_reason:
                self._figures.fell_back(call.prefill_reason)
                call.prefill_reason = ""
            await self._undivided(call, placement.decode)
            return
        prefill = placement.prefill
        try:
            connector = connector_named(prefill.record.connector)
            divided = self._at_once if connector.concurrent else self._in_turn
            await divided(call, booking, prefill, connector)
        except TransferBroken as broken:
            await self._fall_back(call, booking, LegFailed(prefill, "no_transfer", str(broken)))

    async def _undivided(self, call: Call, endpoint: Endpoint) -> None:
        """One leg: the endpoint prefills and decodes."""
        call.prefill_usage = None
        body = stream_body(call.chat)
        if call.salt and not call.served.ours:
            own = call.chat.rendering.get("cache_salt")
            salt = call.salt + (b"/" + bytes(own).strip(b'"') if own is not None else b"")
            body = decode_body(call.chat, {"cache_salt": salt.decode()})  # a plain engine isolates by this field (vLLM's)
        response = await self._legs.send(call, endpoint, body)
        await self._deliverer.deliver(call, endpoint, response)

    async def _in_turn(self, call: Call, booking: Booking, prefill: Endpoint, connector: Connector) -> None:
        """Prefill, then decode with what the prefill answered."""
        nonce = self._rng.getrandbits(128)
        try:
            params = await self._prefill(call, prefill, connector.prefill_body(prefill, nonce))
        except LegFailed as failed:
            await self._prefill_failed(call, booking, failed)
            return
        booking.prefilled(call.now())
        extra = connector.decode_body(prefill, nonce, params)
        while True:
            decode = self._bind(call, booking)
            try:
                response = await self._legs.send(call, decode, decode_body(call.chat, extra))
                await self._deliverer.deliver(call, decode, response)
                return
            except LegFailed as failed:
                if failed.reason == "refused_kv":
                    # The decode side could not pull: not its fault, so it is the prefill endpoint that is left out.
                    await self._prefill_failed(call, booking, LegFailed(prefill, "kv_lost", str(failed)))
                    return
                if not failed.kv_kept or call.tried >= self._attempts:
                    raise
                call.tried += 1
                call.excluded |= {failed.endpoint.id}
                self._figures.retried(failed.reason)

    async def _at_once(self, call: Call, booking: Booking, prefill: Endpoint, connector: Connector) -> None:
        """Both legs together; the failure of one cancels the other."""
        decode = booking.placement.decode or self._bind(call, booking)
        nonce = self._rng.getrandbits(128)
        loop = asyncio.get_running_loop()
        bodies = connector.prefill_body(prefill, nonce), decode_body(call.chat, connector.decode_body(prefill, nonce, None))
        first = loop.create_task(self._prefill(call, prefill, bodies[0]))
        second = loop.create_task(self._legs.send(call, decode, bodies[1]))
        try:
            await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
            if first.done() and first.exception() is None:
                booking.prefilled(loop.time())
                await asyncio.wait((second,))
            if not second.done():
                failed = first.exception()
                await _cancel(second)
                if isinstance(failed, LegFailed):
                    await self._prefill_failed(call, booking, failed)
                    return
                raise failed or RuntimeError("a leg ended without a result")
            try:
                response = second.result()
            except LegFailed as failed:
                if failed.reason == "refused_kv":
                    await _cancel(first)
                    await self._prefill_failed(call, booking, LegFailed(prefill, "kv_lost", str(failed)))
                    return
                raise
            if not call.chat.stream and not first.done():
                await asyncio.wait((first,), timeout=_LATE_USAGE_S)  # its usage belongs into the answer
            await self._deliverer.deliver(call, decode, response)
        finally:
            await _cancel(first, second)

    def _bind(self, call: Call, booking: Booking) -> Endpoint:
        decode = booking.bind_decode(call.now(), call.excluded)
        call.placement = booking.placement
        if decode is None:
            raise Ended(
                Outcome.NO_ENDPOINT, f"no endpoint of {call.served.name} can decode now; {call.tried} placements tried", retry_after_s=1
            )
        return decode

    async def _prefill(self, call: Call, prefill: Endpoint, extra: Mapping[str, Any]) -> Any:
        """The prefill leg; gives its transfer parameters (None where there are none) and notes its usage."""
        response = await self._legs.send(call, prefill, prefill_body(call.chat, extra))
        try:
            body = await response.read(_PREFILL_ANSWER_BYTES)
        except UpstreamError as error:
            raise self._legs.failure(call, prefill, error) from None
        call.prefill_usage, _ = read_usage(body)
        facts = decode_facts(response.header(FACTS_HEADER))
        if facts is not None:
            learn(call, prefill, facts, call.now())
        return read_transfer_params(body)

    async def _prefill_failed(self, call: Call, booking: Booking, failed: LegFailed) -> None:
        """Another prefill endpoint if there is one (once), else the decode endpoint prefills itself."""
        call.prefill_failures += 1
        call.excluded |= {failed.endpoint.id}
        others = any(
            one.record.role.prefills_for_others and not one.draining and one.id not in call.excluded and one.record.connector != "none"
            for one in call.served.live
        )
        if others and call.prefill_failures < _MOST_PREFILL_ENDPOINTS:
            call.prefill_reason = failed.reason
            raise failed
        await self._fall_back(call, booking, failed)

    async def _fall_back(self, call: Call, booking: Booking, failed: LegFailed) -> None:
        """The decode endpoint prefills itself. Raises `failed` where none can."""
        if not any(one.record.serves_whole and not one.draining and one.id not in call.excluded for one in call.served.live):
            raise failed
        booking.prefill_failed(call.now())
        call.undivided = True
        decode = self._bind(call, booking)
        self._figures.fell_back(failed.reason)
        await self._undivided(call, decode)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """End tasks and take their results; a response that nobody has taken is closed."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Response):
            result.close()
