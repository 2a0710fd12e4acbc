"""What a request's headers say: who asks, by which id, with which targets; and which headers go on to the endpoints.

The director calls `read_head` first. Of what clients send under `x-penstock-` only the names here are read, and none goes on.
"""

from collections.abc import Mapping
from random import Random

import msgspec
from penstock_core.errors import Outcome
from penstock_core.slo import Slo
from penstock_dataplane.wire import EncodedHeaders, HeaderList, encode_headers

from penstock_router.call import Ended

_MOST_ID_BYTES = 128
_PASSED_ON = (b"user-agent", b"traceparent", b"tracestate", b"baggage", b"anthropic-version", b"anthropic-beta")
_STEERING = frozenset({b"x-penstock-priority", b"x-penstock-explain", b"x-penstock-slo-ttft-ms", b"x-penstock-slo-itl-ms"})
_MARKING = frozenset(_PASSED_ON)


class Head(msgspec.Struct, frozen=True):
    """The headers the router acts on, and those that each leg carries."""

    request_id: bytes
    authorization: bytes | None
    forwarded: EncodedHeaders
    priority: bytes | None = None
    explain: bool = False
    ttft_ms: bytes | None = None
    itl_ms: bytes | None = None


def read_head(headers: HeaderList, rng: Random, *, forward_authorization: bool) -> Head:
    """Of a header given twice the last one counts. An unusable `x-request-id` is replaced; nothing here is refused."""
    named = dict(headers)
    request_id = named.get(b"x-request-id")
    if request_id is None or not 0 < len(request_id) <= _MOST_ID_BYTES or not _is_word(request_id):
        request_id = b"%032x" % rng.getrandbits(128)
    authorization = named.get(b"authorization")
    forwarded = EncodedHeaders(b"content-type: application/json\r\nx-request-id: %b\r\n" % request_id)
    if forward_authorization or not _MARKING.isdisjoint(named):
        names = (*_PASSED_ON, b"authorization") if forward_authorization else _PASSED_ON
        forwarded = EncodedHeaders(forwarded + encode_headers([(name, named[name]) for name in names if name in named]))
    if _STEERING.isdisjoint(named):
        return Head(request_id, authorization, forwarded)
    get = named.get
    return Head(
        request_id,
        authorization,
        forwarded,
        get(b"x-penstock-priority"),
        get(b"x-penstock-explain") == b"1",
        get(b"x-penstock-slo-ttft-ms"),
        get(b"x-penstock-slo-itl-ms"),
    )


def slo_of(head: Head, default: Slo) -> Slo:
    """The targets that the request names, else the model's. Raises Ended for a value that is no number of milliseconds."""
    if head.ttft_ms is None and head.itl_ms is None:
        return default
    named: Mapping[str, bytes | None] = {"ttft": head.ttft_ms, "itl": head.itl_ms}
    seconds = {}
    for name, written in named.items():
        if written is None:
            continue
        try:
            value = float(written) / 1e3
        except ValueError:
            value = -1.0
        if not 0.0 < value < 86_400.0:
            header = f"x-penstock-slo-{name}-ms"
            raise Ended(
                Outcome.BAD_REQUEST,
                f"{header} is {written.decode('latin-1')!r}; allowed: milliseconds, more than 0 and less than 86400000",
                param=header,
            )
        seconds[name] = value
    return Slo(seconds.get("ttft", default.ttft_s), seconds.get("itl", default.itl_s))


def _is_word(value: bytes) -> bool:
    """Printable ASCII without spaces, so that it can be logged and sent on."""
    return value.isascii() and value.decode("ascii").isprintable() and b" " not in value
