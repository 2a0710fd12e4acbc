"""The exact fields that each connector adds to the two legs, as the engines expect them on the wire."""

import msgspec
import pytest
from penstock_core.endpoint import Endpoint, Role, WorkerRecord
from penstock_core.profile import DEFAULT_PROFILE
from penstock_router.transfer import CONNECTORS, TransferBroken, connector_named

NONCE = 0x0123456789ABCDEF_FEDCBA9876543210


def prefill(**facts):
    record = WorkerRecord(
        id="p0",
        url="http://p:1",
        role=Role.PREFILL,
        pool="p",
        model="m",
        epoch=1,
        profile=DEFAULT_PROFILE,
        kv_total_tokens=1,
        block_tokens=64,
        max_model_tokens=1,
        connector_facts=facts,
    )
    return Endpoint(record)


def test_nixl_asks_for_the_blocks_and_hands_the_answer_on_whole():
    """The prefill leg carries vLLM's six parameters; the decode leg the returned object byte for byte."""
    nixl = connector_named("nixl")
    assert nixl.prefill_body(prefill(), NONCE) == {
        "kv_transfer_params": {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "remote_engine_id": None,
            "remote_block_ids": None,
            "remote_host": None,
            "remote_port": None,
        }
    }
    answered = b'{"do_remote_prefill": true,  "remote_block_ids": [[1,2]], "surprise": {"a": null}}'
    body = msgspec.json.encode(nixl.decode_body(prefill(), NONCE, msgspec.Raw(answered)))
    assert body == b'{"kv_transfer_params":' + answered + b"}"
    assert not nixl.concurrent


@pytest.mark.parametrize("params", [None, msgspec.Raw(b"null"), msgspec.Raw(b"[]")])
def test_nixl_without_parameters_is_a_broken_transfer(params):
    """An engine that kept no blocks answers null: the decode endpoint must prefill itself."""
    with pytest.raises(TransferBroken, match="p0"):
        connector_named("nixl").decode_body(prefill(), NONCE, params)


def test_sglang_gives_both_legs_the_same_bootstrap():
    """Host, port and a 63-bit room, alike in both legs, which run at once."""
    sglang = connector_named("sglang")
    body = sglang.prefill_body(prefill(bootstrap_host="p", bootstrap_port=9000), NONCE)
    assert body == {"bootstrap_host": "p", "bootstrap_port": 9000, "bootstrap_room": NONCE & (2**63 - 1)}
    assert sglang.decode_body(prefill(bootstrap_host="p", bootstrap_port=9000), NONCE, None) == body
    assert sglang.prefill_body(prefill(bootstrap_host="p"), NONCE)["bootstrap_port"] == 8998
    assert sglang.concurrent


def test_mooncake_names_one_transfer_and_where_it_comes_from():
    """The transfer id is `xfer-` and a UUID made of the nonce; the decode leg adds bootstrap address and engine id."""
    mooncake = connector_named("mooncake")
    source = prefill(remote_bootstrap_addr="http://p:8998", remote_engine_id="e1")
    transfer = "xfer-01234567-89ab-4def-bedc-ba9876543210"
    assert mooncake.prefill_body(source, NONCE) == {
        "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer}
    }
    assert mooncake.decode_body(source, NONCE, None) == {
        "kv_transfer_params": {
            "do_remote_decode": False,
            "do_remote_prefill": True,
            "transfer_id": transfer,
            "remote_bootstrap_addr": "http://p:8998",
            "remote_engine_id": "e1",
        }
    }


@pytest.mark.parametrize("name", ["sglang", "mooncake"])
def test_an_endpoint_without_the_facts_is_a_broken_transfer(name):
    """What only the worker can know is asked from its registration, and named when missing."""
    with pytest.raises(TransferBroken, match="connector fact"):
        CONNECTORS[name].decode_body(prefill(), NONCE, None)


def test_an_unknown_connector_is_a_broken_transfer():
    """`none` and unheard-of names cannot hand KV over."""
    with pytest.raises(TransferBroken, match="nixl"):
        connector_named("none")
