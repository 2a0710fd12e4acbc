"""The command line and the environment of a vLLM that we start. Pure: a config and its ports in, words out.

`dialect` calls it. What each flag is for stands in docs/engines.md. The user's own words come last, and vLLM takes the last.
"""

from types import MappingProxyType

import msgspec

from penstock_worker.engines.server.config import ServerConfig
from penstock_worker.engines.server.dialect import Ports
from penstock_worker.engines.server.dialect import environment as laid_over

MODULE = "vllm.entrypoints.openai.api_server"
"""Works in every build; the `vllm` command is missing from some."""
TOPIC = "kv-events"
NAME_OF_CONNECTOR = MappingProxyType({"nixl": "NixlConnector", "mooncake": "MooncakeConnector", "none": ""})
"""Connectors in Penstock's words, and what vLLM calls them."""


def command(config: ServerConfig, ports: Ports) -> list[str]:
    """Words for the engine's interpreter, after `python`."""
    words = ["-m", MODULE, "--model", config.hub or config.folder, "--served-model-name", config.model]
    words += ["--host", "127.0.0.1", "--port", str(ports.http)]
    words += ["--enable-prefix-caching", "--enable-request-id-headers", "--enable-prompt-tokens-details"]
    words += ["--kv-events-config", msgspec.json.encode(_events(ports)).decode()]
    if config.hub and config.revision:
        words += ["--revision", config.revision]
    if NAME_OF_CONNECTOR[config.connector]:
        words += ["--kv-transfer-config", msgspec.json.encode(_transfer(config, ports)).decode()]
    return [*words, *config.args]


def environment(config: ServerConfig, ports: Ports) -> dict[str, str]:
    """What is added to our own environment; the user's settings win."""
    ours = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": config.side_host,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(ports.side),
        "VLLM_MOONCAKE_BOOTSTRAP_PORT": str(ports.side),
        "VLLM_NIXL_ABORT_REQUEST_TIMEOUT": str(max(1, round(config.claim_seconds))),  # before leases (vLLM 0.12 and older)
        "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": str(max(1, round(config.claim_seconds))),
    }
    return laid_over(config, ours)


def engine_id(ports: Ports) -> str:
    """vLLM's own name for the engine, which decode workers of Mooncake must know; its sockets' folder is new with each start."""
    return ports.events.rpartition("/")[0].rpartition("/")[2]


def _events(ports: Ports) -> dict[str, object]:
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": ports.events,
        "replay_endpoint": ports.replay,
        "topic": TOPIC,
    }


def _transfer(config: ServerConfig, ports: Ports) -> dict[str, object]:
    """A failed pull fails the request instead of being computed again unseen: the router then prefills anew, elsewhere."""
    written: dict[str, object] = {
        "kv_connector": NAME_OF_CONNECTOR[config.connector],
        "kv_role": "kv_both",
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": {"kv_lease_duration": max(1, round(config.claim_seconds))},
    }
    return {**written, "engine_id": engine_id(ports)} if config.connector == "mooncake" else written
