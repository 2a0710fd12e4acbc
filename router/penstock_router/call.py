"""One request on its way through the router, and the three ways out of the middle of it.

`director` makes a Call and fills it in step by step, `dispatch` carries it out, `director` closes it in one `finally`. Values
only: it holds no decision and does no I/O.
"""

from penstock_core.endpoint import Endpoint
from penstock_core.errors import Outcome
from penstock_core.placement import Placement
from penstock_core.slo import Slo
from penstock_dataplane.exchange import Exchange
from penstock_dataplane.wire import EncodedHeaders, HeaderList

from penstock_router.admission.claim import Turned
from penstock_router.admission.line import Waiting
from penstock_router.endpoints import Served
from penstock_router.keys import Tenant
from penstock_router.openai import ChatRequest, Usage
from penstock_router.prefixes import Keys
from penstock_router.scheduling import Booking


class Ended(Exception):
    """The request ends here with this outcome; `status` only where it is not the outcome's own (404 or 405 for a wrong path).

    `message` goes to the client; `detail` (addresses, an upstream's words) into the log only.
    """

    def __init__(
        self,
        outcome: Outcome,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        status: int | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.message = message
        self.detail = detail
        self.param = param
        self.retry_after_s = retry_after_s
        self.status = status


class Answered(Exception):
    """An upstream's own refusal of the client's request (4xx): it goes to the client as it is."""

    def __init__(self, status: int, headers: HeaderList, body: bytes) -> None:
        super().__init__(f"upstream answered {status}")
        self.status = status
        self.headers = headers
        self.body = body


class LegFailed(Exception):
    """A leg failed before the client got a byte; another endpoint may be tried.

    `reason` is one of a fixed few words (a metric label). `kv_kept`: the endpoint never began, so a prefill made for it can
    still be claimed by another.
    """

    def __init__(self, endpoint: Endpoint, reason: str, detail: str, *, kv_kept: bool = False, come_again_s: int | None = None) -> None:
        super().__init__(f"{endpoint.id}: {detail}")
        self.endpoint = endpoint
        self.reason = reason
        self.kv_kept = kv_kept
        self.come_again_s = come_again_s  # it has too many requests (429), and said so much


class Call:
    """What is known of one request so far. Each field is set once, by the step named beside it, unless it says otherwise.

    What a request does not have is not set on it: the class says what holds then.
    """

    chat: ChatRequest
    served: Served
    tenant: Tenant
    slo: Slo
    # director, reading the head and the body
    request_id = b""
    headers: EncodedHeaders  # sent on with each leg
    salt = b""
    priority = 0
    explain = False
    admitted = False
    tallied = False  # its arrival was noted, so its end will be
    held_s = 0.0  # waited for a first replica of its model
    charged_tokens = 0.0  # of its tenant's quota
    turned: Turned | None = None  # why admission let it not start
    waiting: Waiting | None = None  # from its coming into the line
    keys: Keys | None = None  # of its prompt
    prompt_tokens = 0  # estimated, then as counted by a worker
    # dispatch, once per attempt
    excluded: frozenset[str] = frozenset()
    booking: Booking | None = None
    placement: Placement | None = None
    placed_s = 0.0
    tried = 0
    undivided = False
    prefill_failures = 0
    prefill_reason = ""
    prefill_usage: Usage | None = None
    # dispatch, from the answer
    begun = False  # bytes of an upstream's answer are on their way to the client: no other placement is tried
    first_s = 0.0  # loop time of the first content sent to the client; 0: none yet
    cached_tokens: int | None = None
    usage: Usage | None = None
    # how it ended; CLIENT_GONE stands until something else is known, because a cancelled task ends without a word
    outcome = Outcome.CLIENT_GONE
    message = ""

    def __init__(self, exchange: Exchange, deadline_s: float) -> None:
        self.exchange = exchange
        self.now = exchange.now  # loop time
        self.received_s = exchange.request.received_s
        self.deadline_s = deadline_s  # loop time; handed to every leg
