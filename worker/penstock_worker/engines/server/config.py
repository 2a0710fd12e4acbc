"""What an engine that is a server of its own is told: the model, the engine's interpreter and ports, or the server to adopt.

`assembly` makes one from a WorkerConfig; a dialect turns it into words for its engine, `engine` reads the rest. Pure values.
"""

from collections.abc import Mapping
from types import MappingProxyType

import msgspec
from penstock_core.endpoint import Role
from penstock_core.profile import EngineProfile


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One engine. `folder` or `hub` (we start it), or `adopt_url` (it runs already)."""

    model: str
    """Name that clients put in `model`; served name of an engine that we start."""
    profile: EngineProfile
    role: Role = Role.BOTH
    folder: str = ""
    """Folder of the model: weights, tokenizer.json, chat template. Also wanted for an adopted engine, to follow its KV."""
    hub: str = ""
    """Name of the model in a hub, which the engine asks itself; its folder is then looked for in the hub's cache."""
    revision: str = ""
    """Of the hub's model; empty: its main one."""
    python: str = "python3"
    """Interpreter of the environment that has the engine."""
    args: tuple[str, ...] = ()
    """Further words for the engine; they win over ours."""
    env: Mapping[str, str] = MappingProxyType({})
    adopt_url: str = ""
    """`http://host:port` of a running engine."""
    adopt_events: str = ""
    """`tcp://host:port` where it publishes KV events; empty: it does not."""
    adopt_replay: str = ""
    connector: str = "nixl"
    side_host: str = "127.0.0.1"
    """Where decode workers reach this engine's side channel or bootstrap server."""
    side_port: int = 0
    claim_seconds: float = 30.0
    start_s: float = 900.0
    """How long it may take to come up."""
    max_waiting: int = 1_024
    log_path: str = ""
    """What the engine prints is appended there; empty: to our own output."""
