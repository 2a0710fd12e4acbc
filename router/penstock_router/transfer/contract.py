"""What a connector is to dispatch: what it adds to the two bodies, and whether the legs run at once.

Implemented by `nixl`, `sglang` and `mooncake`; chosen by name in `connector`. Pure: the nonce is handed in, no sockets here.
"""

from collections.abc import Mapping
from typing import Protocol

import msgspec
from penstock_core.endpoint import Endpoint
from penstock_core.errors import PenstockError

Extra = Mapping[str, object]
"""Top-level fields to put into a request body: name to JSON value (msgspec.Raw for text that is JSON already)."""


class TransferBroken(PenstockError):
    """This prefill cannot be handed over (the endpoint did not say how); let the decode endpoint prefill itself."""


class Connector(Protocol):
    """One way of handing KV over. `nonce` is 128 random bits, the same for both legs of one attempt."""

    name: str
    concurrent: bool
    """True where both legs are sent at once: the decode endpoint is bound before dispatch."""

    def prefill_body(self, prefill: Endpoint, nonce: int) -> Extra:
        """Fields for the prefill leg. Raises TransferBroken where the endpoint registered without what they need."""

    def decode_body(self, prefill: Endpoint, nonce: int, params: msgspec.Raw | None) -> Extra:
        """Fields for the decode leg; `params`: what the prefill answered, None where both run at once. Raises TransferBroken likewise."""


def fact(prefill: Endpoint, name: str) -> str | int:
    """One of the endpoint's connector facts. Raises TransferBroken naming it where it is missing."""
    try:
        return prefill.record.connector_facts[name]
    except KeyError:
        raise TransferBroken(f"endpoint {prefill.id} registered without connector fact {name!r}") from None
