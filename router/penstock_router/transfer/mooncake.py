"""Mooncake as vLLM speaks it: one transfer id in both legs; the decode leg also names the prefill's bootstrap server and engine."""

import uuid

import msgspec
from penstock_core.endpoint import Endpoint

from penstock_router.transfer.contract import Extra, fact


def _transfer_id(nonce: int) -> str:
    return f"xfer-{uuid.UUID(int=nonce, version=4)}"


class Mooncake:
    """The legs overlap: the decode side waits for the push of the transfer it was told of."""

    name = "mooncake"
    concurrent = True

    def prefill_body(self, prefill: Endpoint, nonce: int) -> Extra:
        return {"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": _transfer_id(nonce)}}

    def decode_body(self, prefill: Endpoint, nonce: int, params: msgspec.Raw | None) -> Extra:
        return {
            "kv_transfer_params": {
                "do_remote_decode": False,
                "do_remote_prefill": True,
                "transfer_id": _transfer_id(nonce),
                "remote_bootstrap_addr": fact(prefill, "remote_bootstrap_addr"),
                "remote_engine_id": fact(prefill, "remote_engine_id"),
            }
        }
