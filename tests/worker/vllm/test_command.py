"""The command line and environment of a vLLM that we start."""

import json

from penstock_core.profile import DEFAULT_PROFILE
from penstock_worker.engines.server.bodies import with_salt
from penstock_worker.engines.server.config import ServerConfig
from penstock_worker.engines.server.dialect import Ports
from penstock_worker.engines.vllm.command import command, environment
from penstock_worker.engines.vllm.dialect import Vllm

PORTS = Ports(8001, 5600, "ipc:///private/events", "ipc:///private/replay")


def _config(**fields: object) -> ServerConfig:
    return ServerConfig(**{"model": "m", "profile": DEFAULT_PROFILE, "folder": "/models/m", **fields})  # type: ignore[arg-type]


def _after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_our_flags_are_given_and_the_users_come_last() -> None:
    """vLLM takes the last of two; so the user's word wins."""
    words = command(_config(args=("--port", "9", "--quantization", "fp8")), PORTS)
    assert words[-4:] == ["--port", "9", "--quantization", "fp8"]
    assert _after(words, "--served-model-name") == "m"
    assert {"--enable-prefix-caching", "--enable-request-id-headers", "--enable-prompt-tokens-details"} <= set(words)


def test_kv_events_are_published_in_a_private_place_and_the_connector_follows_the_setting() -> None:
    """A failed pull must fail, and the lease is the claim time; without a connector there is no transfer at all."""
    words = command(_config(claim_seconds=5.0), PORTS)
    events, transfer = json.loads(_after(words, "--kv-events-config")), json.loads(_after(words, "--kv-transfer-config"))
    assert (events["endpoint"], events["replay_endpoint"]) == (PORTS.events, PORTS.replay)
    assert (transfer["kv_connector"], transfer["kv_load_failure_policy"]) == ("NixlConnector", "fail")
    assert transfer["kv_connector_extra_config"] == {"kv_lease_duration": 5}
    assert "--kv-transfer-config" not in command(_config(connector="none"), PORTS)


def test_the_environment_is_ours_with_the_users_laid_over() -> None:
    """The side channel is where decode workers are told to come."""
    made = environment(_config(env={"HF_HUB_OFFLINE": "0", "UCX_TLS": "tcp"}), PORTS)
    assert made["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "5600"
    assert (made["HF_HUB_OFFLINE"], made["UCX_TLS"]) == ("0", "tcp")


def test_a_tenants_salt_stands_before_the_clients_own_and_nothing_else_changes() -> None:
    """Unknown fields stay as they were written."""
    salted = json.loads(with_salt(b'{"prompt":"x","odd":{"a":[1.50]},"cache_salt":"mine"}', "tenant"))
    assert salted == {"prompt": "x", "odd": {"a": [1.5]}, "cache_salt": "tenant/mine"}
    assert json.loads(with_salt(b'{"prompt":"x"}', "tenant"))["cache_salt"] == "tenant"


def test_a_body_tells_whether_it_pulls_or_hands_over() -> None:
    """And one that cannot be read does neither: vLLM will say what is wrong with it."""
    config, vllm = _config(), Vllm()
    assert vllm.wish(b'{"kv_transfer_params":{"do_remote_prefill":true,"remote_block_ids":[[1,2]]}}', config).pulls
    assert vllm.wish(b'{"kv_transfer_params":{"do_remote_decode":true}}', config).hands_over
    assert vllm.wish(b"[", config) == vllm.wish(b"{}", config)
    assert vllm.wish(b"{}", config).served


def test_a_model_of_a_hub_is_named_and_may_be_fetched() -> None:
    """Its name and revision instead of a folder; the engine is not kept off the hub."""
    config = _config(folder="", hub="org/llama", revision="v2")
    words = command(config, PORTS)
    assert (_after(words, "--model"), _after(words, "--revision")) == ("org/llama", "v2")
    assert "HF_HUB_OFFLINE" not in environment(config, PORTS)


def test_mooncake_gets_an_engine_id_that_is_new_with_each_start() -> None:
    """Decode bodies name it, so it must be known before the engine is; the folder of the engine's sockets is its name."""
    transfer = json.loads(_after(command(_config(connector="mooncake"), PORTS), "--kv-transfer-config"))
    assert (transfer["kv_connector"], transfer["engine_id"]) == ("MooncakeConnector", "private")
    assert environment(_config(connector="mooncake"), PORTS)["VLLM_MOONCAKE_BOOTSTRAP_PORT"] == "5600"
