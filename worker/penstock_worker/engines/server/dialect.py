"""In what one engine differs from another, as `engine` sees it: its words, its figures, and what its bodies say of transfers.

`vllm` and `sglang` implement Dialect. Pure but for `info`, which asks the running engine through the `Get` that it is handed.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from penstock_worker.engine import EngineInfo
from penstock_worker.engines.server.config import ServerConfig
from penstock_worker.engines.server.scrape import Gauges
from penstock_worker.worker_host import StartFailed

Get = Callable[[str], Awaitable[bytes]]
"""The body of a GET on the engine. Raises UpstreamError."""


class Ports(NamedTuple):
    """Where one engine listens: loopback port, port that other engines reach, and ZeroMQ addresses."""

    http: int
    side: int
    events: str
    replay: str


class Launch(NamedTuple):
    """A child's command, after its interpreter, and what is added to our environment."""

    words: list[str]
    environment: dict[str, str]
    host: str = "127.0.0.1"
    """Where its HTTP server listens."""


class Wish(msgspec.Struct, frozen=True):
    """The part of a body that changes how its answer is treated."""

    pulls: bool = False
    """The KV of its prompt is to be fetched from a prefill worker."""
    hands_over: bool = False
    """Its KV is to be kept for a decode worker."""
    served: bool = True
    """False where an engine of this role cannot run it: it must go elsewhere."""


class Dialect(Protocol):
    """One kind of engine."""

    @property
    def name(self) -> str:
        """As its makers write it, for messages."""

    @property
    def phases(self) -> Sequence[tuple[str, re.Pattern[bytes]]]:
        """Phases of a start in order; each ends with the first line of output that matches."""

    def launch(self, config: ServerConfig, ports: Ports) -> Launch:
        """How a child is started."""

    def wish(self, body: bytes, config: ServerConfig) -> Wish:
        """Of a body that is wrong: an empty one, the engine will say what is wrong with it."""

    def gauges(self, text: str) -> Gauges:
        """From its /metrics."""

    def metrics(self, text: str, gauges: Gauges) -> str:
        """Its /metrics with the figures that every worker has under their common names."""

    def first_request(self, config: ServerConfig) -> tuple[str, bytes] | None:
        """Path and body of a first token's request; None where the engine takes care of that before it is healthy."""

    async def info(self, config: ServerConfig, get: Get, ports: Ports | None, *, exact: bool) -> EngineInfo:
        """What the engine says of itself. `exact`: its KV is followed. `ports`: None for one that we did not start. Raises StartFailed."""


class Card(msgspec.Struct):
    """One entry of /v1/models."""

    id: str
    parent: str | None = None
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[Card]


def read_cards(body: bytes, model: str) -> tuple[Card, tuple[str, ...]]:
    """The served model's own entry of a /v1/models answer, and the adapters on top of it. Raises StartFailed."""
    try:
        cards = msgspec.json.decode(body, type=_Cards).data
    except msgspec.DecodeError as error:
        raise StartFailed(f"the engine's own words cannot be read: {error}") from None
    own = next((card for card in cards if card.id == model), None)
    if own is None:
        names = ", ".join(card.id for card in cards) or "nothing"
        raise StartFailed(f"the engine serves {names}; allowed: {model!r}, this worker's model")
    return own, tuple(sorted(card.id for card in cards if card.parent == model and card.id != model))


def environment(config: ServerConfig, ours: Mapping[str, str]) -> dict[str, str]:
    """Ours with the user's laid over; a model of a folder asks no hub."""
    offline = {} if config.hub else {"HF_HUB_OFFLINE": "1"}
    return {"PYTHONUNBUFFERED": "1", **offline, **ours, **config.env}
