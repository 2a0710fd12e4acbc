"""One leg: a POST to one endpoint up to its response head, and what each way of failing means for the request.

`dispatch` and `deliver` call it. It is the one place that turns the data plane's errors and an upstream's statuses into
"try another", "the client's own fault" or "out of time". It knows no placements and no connectors.
"""

from functools import lru_cache

from penstock_core.endpoint import Endpoint
from penstock_core.errors import Outcome
from penstock_core.facts import REFUSE_HEADER, SALT_HEADER, TOKEN_HEADER
from penstock_dataplane.client import Client, Origin, Response
from penstock_dataplane.errors import ConnectFailed, ConnectionLost, DeadlineExceeded, PoolFull, UpstreamError
from penstock_dataplane.wire import EncodedHeaders, encode_headers

from penstock_router.call import Answered, Call, Ended, LegFailed
from penstock_router.endpoints import Directory
from penstock_router.openai import is_object

_REFUSALS = frozenset({"full", "draining", "epoch", "kv"})
_PASSED_BODY_BYTES = 1 << 20
_RETRIED_STATUSES = frozenset({408, 425, 429})
_GRAIN_S = 0.05  # a deadline is noticed a little before or after its time

origin_of = lru_cache(maxsize=65_536)(Origin.parse)


class Legs:
    """Sends legs through one client, each under the request's one deadline."""

    def __init__(self, client: Client, directory: Directory, *, fleet_token: str, head_timeout_s: float) -> None:
        self._client = client
        self._directory = directory
        self._token = encode_headers([(TOKEN_HEADER, fleet_token.encode())]) if fleet_token else None
        self._head_timeout_s = head_timeout_s

    async def send(self, call: Call, endpoint: Endpoint, body: bytes) -> Response:
        """The response of an endpoint that took the request (2xx). Raises LegFailed, Answered or Ended."""
        now = call.now()
        headers = call.headers
        if self._token is not None and call.served.ours:
            headers = EncodedHeaders(headers + self._token)
            if call.salt:
                headers = EncodedHeaders(headers + encode_headers([(SALT_HEADER, call.salt)]))
        try:
            response = await self._client.request(
                origin_of(endpoint.record.url),
                "POST",
                call.chat.path,
                headers,
                body,
                deadline_s=min(call.deadline_s, now + self._head_timeout_s),
            )
        except UpstreamError as error:
            raise self.failure(call, endpoint, error) from None
        if 200 <= response.status < 300:
            call.served.answered_s[endpoint.id] = now
            return response
        raise await self._refusal(call, endpoint, response)

    def failure(self, call: Call, endpoint: Endpoint, error: UpstreamError) -> Ended | LegFailed:
        """What an UpstreamError means, of the head or of a body of which the client has seen nothing yet."""
        if isinstance(error, DeadlineExceeded):
            if call.now() >= call.deadline_s - _GRAIN_S:
                return out_of_time(call)
            return LegFailed(endpoint, "timeout", error.detail)
        if isinstance(error, ConnectFailed):
            self._directory.unreachable(call.served, endpoint, error.detail)
            return LegFailed(endpoint, "connect", error.detail, kv_kept=True)
        if isinstance(error, PoolFull):
            return LegFailed(endpoint, "pool_full", error.detail, kv_kept=True)
        if isinstance(error, ConnectionLost):
            return LegFailed(endpoint, "connection_lost", error.detail)
        return LegFailed(endpoint, "garbage", error.detail)

    async def _refusal(self, call: Call, endpoint: Endpoint, response: Response) -> Exception:
        status, refused = response.status, response.header(REFUSE_HEADER)
        if status == 503 and refused is not None:
            response.close()  # nothing to a complete one, whose connection lives on; nobody waits for the rest of another
            word = refused.decode("latin-1")
            reason = f"refused_{word}" if word in _REFUSALS else "refused"
            return LegFailed(endpoint, reason, f"refused: {word[:40]!r}", kv_kept=word != "kv")
        if status >= 500 or status in _RETRIED_STATUSES or not 400 <= status < 500:
            response.close()
            reason = "busy" if status in _RETRIED_STATUSES else "server_error" if status >= 500 else "garbage"
            come_again_s = _come_again_s(response) if status == 429 else None
            return LegFailed(endpoint, reason, f"answered {status}", come_again_s=come_again_s)
        try:
            body = await response.read(_PASSED_BODY_BYTES)
        except UpstreamError as error:
            return self.failure(call, endpoint, error)
        if not is_object(body):  # a proxy's page, not an engine's word on the request
            return LegFailed(endpoint, "garbage", f"answered {status} with a body that is no JSON object")
        return Answered(status, response.headers, body)


def _come_again_s(response: Response) -> int:
    """Whole seconds of a 429's Retry-After, 1..60; 1 where it says nothing that can be read."""
    said = response.header(b"retry-after") or b""
    return min(60, max(1, int(said))) if said.isdigit() and len(said) < 9 else 1


def out_of_time(call: Call) -> Ended:
    """The request's deadline has passed."""
    allowed_s = call.deadline_s - call.received_s
    return Ended(Outcome.DEADLINE_EXCEEDED, f"the request took longer than its deadline of {allowed_s:g} s ({call.tried} placements tried)")
