"""SGLang's bootstrap: both legs carry the same host, port and room, are sent at once, and meet by themselves."""

import msgspec
from penstock_core.endpoint import Endpoint

from penstock_router.transfer.contract import Extra, fact

DEFAULT_BOOTSTRAP_PORT = 8998
_ROOM_BITS = 63


class SgLang:
    """Both at once; a failure of one cancels the other."""

    name = "sglang"
    concurrent = True

    def prefill_body(self, prefill: Endpoint, nonce: int) -> Extra:
        facts = prefill.record.connector_facts
        return {
            "bootstrap_host": fact(prefill, "bootstrap_host"),
            "bootstrap_port": facts.get("bootstrap_port", DEFAULT_BOOTSTRAP_PORT),
            "bootstrap_room": nonce & ((1 << _ROOM_BITS) - 1),
        }

    def decode_body(self, prefill: Endpoint, nonce: int, params: msgspec.Raw | None) -> Extra:
        return self.prefill_body(prefill, nonce)
