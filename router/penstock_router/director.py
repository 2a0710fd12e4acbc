"""The path of one request: who asks, for what, may it start, where does it go, and the one way in which it ended.

The data plane's server calls `handle` for every `/v1/*` request. Each step takes what the steps before have put into the
Call; whatever happens, `_close` writes metrics, log line and decision once. No sockets and no statuses of upstreams here.
"""

import logging
from collections import deque
from functools import lru_cache
from random import Random
from time import time

import msgspec
from penstock_core.compiled_hash import chunk_keys
from penstock_core.errors import BadInput, Outcome
from penstock_core.placement import Placement
from penstock_core.prompt import start_bytes
from penstock_core.traffic import SHED
from penstock_dataplane.exchange import Exchange

from penstock_router.admission.bounds import Admission
from penstock_router.admission.claim import Claim, Turned
from penstock_router.admission.line import Waiting
from penstock_router.call import Answered, Call, Ended
from penstock_router.config import RouterConfig, Secrets
from penstock_router.deliver import client_headers
from penstock_router.dispatch import Dispatch
from penstock_router.endpoints import Directory, Served
from penstock_router.given import model_card, models_body
from penstock_router.head import Head, read_head, slo_of
from penstock_router.holding import Holding, fell_asleep
from penstock_router.keys import KeyRing, priority_of, tenant_salt
from penstock_router.length_classes import class_of
from penstock_router.metrics import UNKNOWN_MODEL, Figures
from penstock_router.openai import CAPABILITIES, error_body, error_event, event_of_error, parse
from penstock_router.prefixes import MOST_CHUNKS
from penstock_router.scheduling import Ask

log = logging.getLogger(__name__)


@lru_cache(maxsize=4096)
def _plain_start(salt: bytes, adapter: str) -> bytes:
    """Start of the prompts of most requests, which have no rendering fields."""
    return start_bytes(salt=salt, adapter=adapter)


MODELS = "/v1/models"
_FEW_ENDPOINTS = 16
_JSON = (b"content-type", b"application/json")
_PASSED_ON_OUTCOMES = {
    401: Outcome.UNAUTHORIZED,
    403: Outcome.FORBIDDEN,
    404: Outcome.MODEL_NOT_FOUND,
    413: Outcome.BODY_TOO_LARGE,
}
_QUIET = frozenset({Outcome.OK, Outcome.CLIENT_GONE})


class Decision(msgspec.Struct, frozen=True):
    """What is kept of a request for `penstock explain`."""

    ended_s: float
    """Loop time."""
    request_id: bytes
    model: str
    tenant: str
    outcome: Outcome
    placement: Placement | None
    tried: int
    prompt_tokens: int
    cached_tokens: int | None
    ttft_s: float | None
    """Measured; None before a first token and for whole answers."""
    priority: int
    queued_s: float | None
    """From its receipt to its first placement; None without one."""
    turned: Turned | None
    """Why it was not served, where admission turned it away."""


class Director:
    """Handles requests; one a router. State: the ring of decisions and the turn counter for keeping candidates."""

    def __init__(
        self,
        *,
        config: RouterConfig,
        secrets: Secrets,
        directory: Directory,
        dispatch: Dispatch,
        admission: Admission,
        keys: KeyRing,
        figures: Figures,
        rng: Random,
    ) -> None:
        self._config = config
        self._secrets = secrets
        self._directory = directory
        self._dispatch = dispatch
        self._holding = Holding(config)
        self._admission = admission
        self._keys = keys
        self._figures = figures
        self._rng = rng
        self._count = 0
        self._started_s = int(time())
        self.decisions: deque[Decision] = deque(maxlen=config.decisions_kept)

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request, whatever it is. Cancelled when the client leaves before an answer has begun."""
        self._figures.active += 1
        call = Call(exchange, exchange.request.received_s + self._config.deadline_s)
        try:
            head = read_head(exchange.request.headers, self._rng, forward_authorization=self._config.forward_authorization)
            call.request_id, call.headers = head.request_id, head.forwarded
            await self._serve(call, head)
        except Ended as ended:
            self._refuse(call, ended)
        except Answered as answered:
            call.outcome = _PASSED_ON_OUTCOMES.get(answered.status, Outcome.BAD_REQUEST)
            call.message = f"{answered}"
            if exchange.started:
                exchange.finish(event_of_error(answered.body))
            else:
                exchange.respond(answered.status, client_headers(call, answered.headers), answered.body)
        except Exception as error:
            log.exception("request failed inside the router", extra={"facts": {"request_id": call.request_id.decode("latin-1")}})
            self._refuse(call, Ended(Outcome.UPSTREAM_FAILED, f"the router failed on this request ({type(error).__name__})", status=500))
        finally:
            self._close(call)

    async def _serve(self, call: Call, head: Head) -> None:
        tenant = self._keys.tenant_of(head.authorization)
        if tenant is None:
            said = "the API key is not known" if head.authorization else "no API key was sent"
            raise Ended(Outcome.UNAUTHORIZED, f"{said}; allowed: Authorization: Bearer <key>")
        call.tenant = tenant
        request = call.exchange.request
        if request.method != "POST" or request.path not in CAPABILITIES:
            self._other(call)
            return
        try:
            call.chat = parse(request.path, request.body)
            call.priority = priority_of(head.priority, tenant)
        except BadInput as error:
            raise Ended(Outcome.BAD_REQUEST, str(error), param=error.param) from None
        except ValueError as error:
            raise Ended(Outcome.BAD_REQUEST, str(error), param="x-penstock-priority") from None
        found = self._directory.resolve(call.chat.model)
        if found is None:
            raise self._no_such_model(call.chat.model)
        served, adapter = found
        call.served = served
        call.slo = slo_of(head, served.slo)
        call.explain = head.explain
        call.prompt_tokens = max(1, int(len(call.chat.canonical) * served.ratio.value))
        if tenant.tokens_per_minute:
            call.charged_tokens = call.prompt_tokens + served.lengths.expected_tokens(None, call.chat.max_tokens)
        turned = self._admission.admit(tenant, call.charged_tokens, call.received_s)
        tally = served.tally
        if tally is not None and (turned is None or turned.outcome in SHED):
            tally.arrivals.append((call.received_s, call.prompt_tokens))
            call.tallied = True
        if turned is not None:
            call.turned = turned
            raise Ended(turned.outcome, turned.message, retry_after_s=turned.retry_after_s)
        call.admitted = True
        while True:
            if not served.serving and served.wakeable:
                await self._holding.until_served(call)
            ask = self._ask(call, adapter)
            waiting = call.waiting = Waiting(ask, Claim(tenant.tenant, tenant.weight, call.priority), call.received_s + call.held_s)
            if call.held_s:
                waiting.held = True
            try:
                return await self._dispatch.run(call, waiting)
            except Ended as ended:
                if not await fell_asleep(call, ended):
                    raise
            served.turn.over(waiting, call.prompt_tokens, None, call.now())
            call.tried, call.excluded = 0, frozenset()

    def _ask(self, call: Call, adapter: str) -> Ask:
        """What the scheduler is told: the prompt's estimated tokens, and who holds its beginning."""
        chat, served, capability = call.chat, call.served, call.chat.capability
        hits = hits_by_id = None
        call.salt = tenant_salt(call.tenant, self._secrets.chunk_secret)
        if len(chat.canonical) >= served.chunk_bytes:
            start = (
                _plain_start(call.salt, adapter)
                if not chat.rendering
                else start_bytes(salt=call.salt, adapter=adapter, rendering=chat.rendering)
            )
            call.keys = chunk_keys(chat.canonical, start, self._secrets.chunk_secret, served.chunk_bytes, MOST_CHUNKS)
            hits, hits_by_id = served.cache.find(call.keys)
        if call.salt and served.ours and not self._secrets.fleet_token:
            raise Ended(Outcome.FORBIDDEN, "the tenant is isolated, which needs the fleet's token; allowed: tenants without isolation")
        return Ask(
            prompt_tokens=call.prompt_tokens,
            tokens_per_chunk=served.chunk_bytes * served.ratio.value,
            hits=hits,
            hits_by_id=hits_by_id,
            max_tokens=chat.max_tokens,
            length_class=class_of(capability, adapter, "tools" in chat.rendering, chat.max_tokens, call.prompt_tokens),
            slo=call.slo,
            undivided=chat.undivided,
            capability=capability,
            adapter=adapter,
            explain=self._keeps_candidates(served) or call.explain,
        )

    def _keeps_candidates(self, served: Served) -> bool:
        """One decision in `explain_every` does; among many endpoints one in so many more that it costs a request no more than among few."""
        self._count += 1
        every = self._config.explain_every * max(1, len(served.live) // _FEW_ENDPOINTS)
        return self._count % every == 0

    def _no_such_model(self, model: str) -> Ended:
        served = ", ".join(name for name, _ in self._directory.listing())
        return Ended(Outcome.MODEL_NOT_FOUND, f"model is {model[:200]!r}; allowed: {served or 'none is served now'}", param="model")

    def _other(self, call: Call) -> None:
        """GET /v1/models and /v1/models/NAME; anything else is not there."""
        request = call.exchange.request
        if request.path in CAPABILITIES:
            raise Ended(Outcome.BAD_REQUEST, f"method is {request.method}; allowed: POST", status=405)
        if request.path != MODELS and not request.path.startswith(MODELS + "/"):
            raise Ended(Outcome.BAD_REQUEST, f"path is {request.path[:200]}; allowed: {', '.join((*CAPABILITIES, MODELS))}", status=404)
        if request.method != "GET":
            raise Ended(Outcome.BAD_REQUEST, f"method is {request.method}; allowed: GET", status=405)
        listing = list(self._directory.listing())
        name = request.path[len(MODELS) + 1 :]
        body = models_body(listing, self._started_s)
        if name:
            card = next((model_card(one, parent, self._started_s) for one, parent in listing if one == name), None)
            if card is None:
                raise self._no_such_model(name)
            body = card
        call.outcome = Outcome.OK
        call.exchange.respond(200, [_JSON, (b"x-request-id", call.request_id)], msgspec.json.encode(body))

    def _refuse(self, call: Call, ended: Ended) -> None:
        """The one place where an outcome becomes a status and a body."""
        call.outcome = ended.outcome
        call.message = f"{ended.message} ({ended.detail})" if ended.detail else ended.message
        if call.exchange.started:
            if call.begun:
                call.exchange.abort()
            else:  # a stream that has been told to wait, and has no other way to hear of it
                call.exchange.finish(error_event(ended.outcome, ended.message))
            return
        headers = [_JSON, (b"x-request-id", call.request_id)]
        if ended.retry_after_s is not None:
            headers.append((b"retry-after", str(ended.retry_after_s).encode()))
        if ended.outcome is Outcome.UNAUTHORIZED:
            headers.append((b"www-authenticate", b"Bearer"))
        status = ended.status or ended.outcome.status
        if not call.exchange.gone:
            call.exchange.respond(status, headers, error_body(ended.outcome, ended.message, ended.param))

    def _close(self, call: Call) -> None:
        """Release and write down, once, however it ended."""
        now, booking, usage = call.now(), call.booking, call.usage
        output = usage.completion_tokens if usage is not None else None
        self._figures.active -= 1
        if booking is not None:
            booking.done(now, output if call.outcome is Outcome.OK else None)
            call.placement = booking.placement
        if call.admitted:
            name = call.served.name
            self._release(call, output, now)
        else:
            name = call.served.name if hasattr(call, "served") else UNKNOWN_MODEL
        cached = _cached(call)
        self._measure(call, name, cached)
        if call.tallied:
            self._tally(call, output, now)
        if call.outcome not in _QUIET:
            self._log(call, name, now)
        if (call.placement is not None or call.turned is not None) and self._config.decisions_kept:
            self._keep(call, name, now, cached)

    def _release(self, call: Call, output: int | None, now: float) -> None:
        """Give back its place in the line and its part of the quotas."""
        waiting, spent = call.waiting, 0.0
        if waiting is not None:
            call.served.turn.over(waiting, call.prompt_tokens, output, now)
            call.turned = waiting.turned
            if waiting.booking is not None:
                spent = call.prompt_tokens + output if output is not None else call.charged_tokens
        self._admission.release(call.tenant, call.charged_tokens, spent, now)

    def _measure(self, call: Call, name: str, cached: int | None) -> None:
        figures = self._figures.model(name)
        figures.outcomes[call.outcome] += 1
        placement = call.placement
        if placement is None:
            return
        figures.queue.observe(call.placed_s - call.received_s)
        if call.first_s:
            figures.ttft.observe(call.first_s - call.received_s)
            if placement.ttft_s:
                figures.ttft_error.observe((call.first_s - call.placed_s - placement.ttft_s) / placement.ttft_s)
        if call.prompt_tokens:
            figures.hit_ratio.observe(min(1.0, placement.hit_tokens / call.prompt_tokens))
            if cached is not None:
                figures.hit_error.observe((cached - placement.hit_tokens) / call.prompt_tokens)

    def _tally(self, call: Call, output: int | None, now: float) -> None:
        """For autoscalers; see `tally.Ending`."""
        tally, hit, placement = call.served.tally, call.cached_tokens, call.placement
        if tally is not None:
            if hit is None:
                hit = placement.hit_tokens if placement is not None else 0
            tally.endings.append((call.received_s, call.prompt_tokens, hit, output or 0, call.placed_s, call.first_s, now, call.outcome))

    def _log(self, call: Call, name: str, now: float) -> None:
        facts = {
            "request_id": call.request_id.decode("latin-1"),
            "model": name,
            "outcome": call.outcome.value,
            "tried": call.tried,
            "seconds": round(now - call.received_s, 4),
        }
        level = log.warning if call.outcome.status >= 500 else log.info
        level(call.message, extra={"facts": facts})

    def _keep(self, call: Call, name: str, now: float, cached: int | None) -> None:
        ttft_s = call.first_s - call.received_s if call.first_s else None
        self.decisions.append(
            Decision(
                now,
                call.request_id,
                name,
                call.tenant.tenant,
                call.outcome,
                call.placement,
                call.tried,
                call.prompt_tokens,
                cached,
                ttft_s,
                call.priority,
                call.placed_s - call.received_s if call.placed_s else None,
                call.turned,
            )
        )


def _cached(call: Call) -> int | None:
    """The engine's own cached-token count of the leg that prefilled, where it says so."""
    if call.cached_tokens is not None:
        return call.cached_tokens
    usage = call.prefill_usage or call.usage
    return usage.cached_tokens if usage is not None else None
