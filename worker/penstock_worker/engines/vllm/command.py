"""The command line and the environment of a vLLM that we start. Pure: a config and its ports in, words out.

`engine` calls it. What each flag is for stands in docs/engines.md. The user's own words come last, and vLLM takes the last.
"""

from typing import NamedTuple

import msgspec

from penstock_worker.engines.vllm.config import ROLE_OF_CONNECTOR, VllmConfig

MODULE = "vllm.entrypoints.openai.api_server"
"""Works in every build; the `vllm` command is missing from some."""
TOPIC = "kv-events"


class Ports(NamedTuple):
    """Where one engine listens: loopback port, port that decode workers reach, and ZeroMQ addresses."""

    http: int
    side: int
    events: str
    replay: str


def command(config: VllmConfig, ports: Ports) -> list[str]:
    """Words for the engine's interpreter, after `python`."""
    words = ["-m", MODULE, "--model", config.folder, "--served-model-name", config.model, "--host", "127.0.0.1", "--port", str(ports.http)]
    words += ["--enable-prefix-caching", "--enable-request-id-headers", "--enable-prompt-tokens-details"]
    words += ["--kv-events-config", msgspec.json.encode(_events(ports)).decode()]
    connector = ROLE_OF_CONNECTOR[config.connector]
    if connector:
        words += ["--kv-transfer-config", msgspec.json.encode(_transfer(config, connector)).decode()]
    return [*words, *config.args]


def environment(config: VllmConfig, ports: Ports) -> dict[str, str]:
    """What is added to our own environment; the user's settings win."""
    ours = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": config.side_host,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(ports.side),
        "VLLM_NIXL_ABORT_REQUEST_TIMEOUT": str(max(1, round(config.claim_seconds))),  # before leases (vLLM 0.12 and older)
        "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": str(max(1, round(config.claim_seconds))),
    }
    return {**ours, **config.env}


def _events(ports: Ports) -> dict[str, object]:
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": ports.events,
        "replay_endpoint": ports.replay,
        "topic": TOPIC,
    }


def _transfer(config: VllmConfig, connector: str) -> dict[str, object]:
    """A failed pull fails the request instead of being computed again unseen: the router then prefills anew, elsewhere."""
    return {
        "kv_connector": connector,
        "kv_role": "kv_both",
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": {"kv_lease_duration": max(1, round(config.claim_seconds))},
    }
