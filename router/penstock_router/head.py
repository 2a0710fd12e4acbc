"""What a request's headers say: who asks, by which id, with which targets; and which headers go on to the endpoints.

The director calls `read_head` first. Of what clients send under `x-penstock-` only the names here are read, and none goes on.
"""

from collections.abc import Mapping
from random import Random

import msgspec
from penstock_core.errors import Outcome
from penstock_core.slo import Slo
from penstock_dataplane.wire import HeaderList

from penstock_router.call import Ended

_MOST_ID_BYTES = 128
_MOST_SESSION_BYTES = 256
_PASSED_ON = (b"user-agent", b"traceparent", b"tracestate", b"baggage", b"anthropic-version", b"anthropic-beta")
_ALWAYS = (b"content-type", b"application/json")


class Head(msgspec.Struct, frozen=True):
    """The headers the router acts on, and those that each leg carries."""

    request_id: bytes
    authorization: bytes | None
    forwarded: list[tuple[bytes, bytes]]
    priority: bytes | None
    session: str | None
    explain: bool
    ttft_ms: bytes | None
    itl_ms: bytes | None


def read_head(headers: HeaderList, rng: Random, *, forward_authorization: bool) -> Head:
    """Of a header given twice the last one counts. An unusable `x-request-id` is replaced; nothing here is refused."""
    get = dict(headers).get
    request_id = get(b"x-request-id")
    if request_id is None or not 0 < len(request_id) <= _MOST_ID_BYTES or not _is_word(request_id):
        request_id = b"%032x" % rng.getrandbits(128)
    forwarded = [_ALWAYS, (b"x-request-id", request_id)]
    for name in _PASSED_ON:
        value = get(name)
        if value is not None:
            forwarded.append((name, value))
    authorization = get(b"authorization")
    if forward_authorization and authorization is not None:
        forwarded.append((b"authorization", authorization))
    session = get(b"x-penstock-session")
    return Head(
        request_id,
        authorization,
        forwarded,
        get(b"x-penstock-priority"),
        session[:_MOST_SESSION_BYTES].decode("latin-1") if session else None,
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
