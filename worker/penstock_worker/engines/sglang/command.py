"""The command line and the environment of an SGLang that we start. Pure: a config and its ports in, words out.

`dialect` calls it. What each flag is for stands in docs/engines.md. The user's own words come last, and SGLang takes the last.
"""

import msgspec
from penstock_core.endpoint import Role

from penstock_worker.engines.server.config import ServerConfig
from penstock_worker.engines.server.dialect import Ports
from penstock_worker.engines.server.dialect import environment as laid_over

MODULE = "sglang.launch_server"
TOPIC = "kv-events"
PAGE_TOKENS = 64
"""Of one block. SGLang's own default is 1: an event and an entry for each token."""


def listens_on(config: ServerConfig) -> str:
    """A prefill engine's bootstrap server listens where its HTTP server does, and decode engines must reach it."""
    return config.side_host if config.role is Role.PREFILL else "127.0.0.1"


def command(config: ServerConfig, ports: Ports) -> list[str]:
    """Words for the engine's interpreter, after `python`."""
    words = ["-m", MODULE, "--model-path", config.hub or config.folder, "--served-model-name", config.model]
    words += ["--host", listens_on(config), "--port", str(ports.http), "--page-size", str(PAGE_TOKENS)]
    words += ["--enable-metrics", "--enable-cache-report", "--kv-events-config", msgspec.json.encode(_events(ports)).decode()]
    if config.hub and config.revision:
        words += ["--revision", config.revision]
    if config.role is not Role.BOTH:
        words += ["--disaggregation-mode", config.role.value]
    if config.role is Role.PREFILL:
        words += ["--disaggregation-bootstrap-port", str(ports.side)]
    return [*words, *config.args]


def environment(config: ServerConfig, ports: Ports) -> dict[str, str]:
    """What is added to our own environment; the user's settings win."""
    claim = str(max(1, round(config.claim_seconds)))
    ours = {
        "SGLANG_HOST_IP": config.side_host,
        "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": claim,
        "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": claim,
    }
    return laid_over(config, ours)


def _events(ports: Ports) -> dict[str, object]:
    return {"publisher": "zmq", "topic": TOPIC, "endpoint": ports.events, "replay_endpoint": ports.replay}
