"""NIXL as vLLM speaks it, and the `sim` engine: the prefill's answer says where its blocks are; it is handed on whole."""

from types import MappingProxyType

import msgspec
from penstock_core.endpoint import Endpoint

from penstock_router.transfer.contract import Extra, TransferBroken

_PREFILL: Extra = MappingProxyType(
    {
        "kv_transfer_params": {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "remote_engine_id": None,
            "remote_block_ids": None,
            "remote_host": None,
            "remote_port": None,
        }
    }
)


class Nixl:
    """Prefill, then decode."""

    name = "nixl"
    concurrent = False

    def prefill_body(self, prefill: Endpoint, nonce: int) -> Extra:
        return _PREFILL

    def decode_body(self, prefill: Endpoint, nonce: int, params: msgspec.Raw | None) -> Extra:
        # An engine keeps no blocks for a prompt whose first token already ended it, and then answers null.
        if params is None or not bytes(params).startswith(b"{"):
            raise TransferBroken(f"endpoint {prefill.id} answered a prefill without kv_transfer_params")
        return {"kv_transfer_params": params}
