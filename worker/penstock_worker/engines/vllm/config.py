"""What the vLLM adapter is told: the model's folder, the engine's interpreter and ports, or the server to adopt.

`assembly` makes one from a WorkerConfig; `command` turns it into words for vLLM, `engine` reads the rest. Pure values.
"""

from collections.abc import Mapping
from types import MappingProxyType

import msgspec
from penstock_core.profile import EngineProfile

ROLE_OF_CONNECTOR = MappingProxyType({"nixl": "NixlConnector", "mooncake": "MooncakeConnector", "none": ""})
"""Connectors in Penstock's words, and what vLLM calls them."""


class VllmConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One vLLM engine. Either `folder` (we start it) or `adopt_url` (it runs already)."""

    model: str
    """Name that clients put in `model`; `--served-model-name` of an engine that we start."""
    profile: EngineProfile
    folder: str = ""
    """Folder of the model: weights, tokenizer.json, chat template. Also wanted for an adopted engine, to follow its KV."""
    python: str = "python3"
    """Interpreter of the environment that has vLLM."""
    args: tuple[str, ...] = ()
    """Further words for vLLM; they win over ours."""
    env: Mapping[str, str] = MappingProxyType({})
    adopt_url: str = ""
    """`http://host:port` of a running vLLM."""
    adopt_events: str = ""
    """`tcp://host:port` where it publishes KV events; empty: it does not."""
    adopt_replay: str = ""
    connector: str = "nixl"
    side_host: str = "127.0.0.1"
    """Where decode workers reach this engine's side channel."""
    side_port: int = 0
    claim_seconds: float = 30.0
    start_s: float = 900.0
    """How long it may take to come up."""
    max_waiting: int = 1_024
    log_path: str = ""
    """What vLLM prints is appended there; empty: to our own output."""
