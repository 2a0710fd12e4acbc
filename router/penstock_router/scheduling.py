"""Places requests on endpoints: filter, ask the policy, book. One Scheduler a served model.

The director hands over the asks of one turn of its event loop and gets a Booking for each; the simulator calls the same
objects with its own clock. Nothing here reads a clock, a socket or a random source of its own: `now` and `rng` are
arguments. It must not know bodies, headers or how a leg is carried out.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.endpoint import Endpoint, Load
from penstock_core.placement import Placement
from penstock_core.slo import DEFAULT_SLO, Slo


class Held(Protocol):
    """Which endpoints hold how much of a prompt, as the index mirror answers (its `Hits` fits)."""

    @property
    def slots(self) -> NDArray[np.uint16]:
        """Index slots, shape (holders,)."""

    @property
    def chunks(self) -> NDArray[np.int32]:
        """Leading chunks that each holds, shape (holders,)."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler needs to know of one request."""

    request_id: str
    prompt_tokens: int
    """Estimate of n; at least 1 is assumed."""
    tokens_per_chunk: float = 64.0
    """Estimated tokens in a chunk of the index."""
    hits: Held | None = None
    hits_by_id: Mapping[str, int] | None = None
    """Leading chunks by endpoint id, for endpoints without a slot; wins over `hits`."""
    max_tokens: int | None = None
    slo: Slo = DEFAULT_SLO
    undivided: bool = False
    """Place on one endpoint that prefills and decodes (no connector, or after a failed prefill leg)."""
    capability: str = "chat"
    adapter: str = ""
    session: str | None = None
    excluded: frozenset[str] = frozenset()
    """Endpoint ids already tried."""
    explain: bool = False


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a scheduler behaves beside its policy."""

    shortlist: int = 16
    """Most endpoints per role that are paired with one another, 2..64."""


class Booking:
    """One placed request. Tell it what happens; every call after `done` does nothing."""

    __slots__ = ("_ask", "_scheduler", "placement")

    def __init__(self, scheduler: "Scheduler", ask: Ask, placement: Placement) -> None:
        self._scheduler = scheduler
        self._ask = ask
        self.placement = placement

    def bind_decode(self, now: float, excluded: frozenset[str] = frozenset()) -> Endpoint | None:
        """Choose (or after a failure choose anew) the decode endpoint; None when there is none. `placement` follows."""
        decodes = [one for one in self._scheduler.live() if one.record.role.decodes and one.id not in excluded]
        decode = self._scheduler.next_of(decodes)
        self.placement = msgspec.structs.replace(self.placement, decode=decode)
        return decode

    def prefilled(self, now: float) -> None:
        """The prefill leg has answered."""

    def prefill_failed(self, now: float) -> None:
        """The prefill leg is given up; a following `bind_decode` gives an endpoint that prefills too."""

    def first_token(self, now: float) -> None:
        """The first content token came."""

    def token(self, now: float) -> None:
        """Another content chunk came."""

    def facts(self, hit_tokens: int, prompt_tokens: int, now: float) -> None:
        """What the worker counted replaces the estimates."""

    def done(self, now: float, output_tokens: int | None = None) -> None:
        """Over: release everything. `output_tokens` is None unless the answer was completed normally."""


class Scheduler:
    """Endpoints, what is believed of them, and the policy that chooses."""

    def __init__(self, policy: str = "target-misses", *, rng: Random, options: Options | None = None) -> None:
        self._rng = rng
        self._options = options or Options()
        self._endpoints: tuple[Endpoint, ...] = ()
        self._turn = 0
        self.conflicts = 0
        """Bookings corrected by load reports so far."""

    def live(self) -> list[Endpoint]:
        return [one for one in self._endpoints if not one.draining]

    def next_of(self, endpoints: Sequence[Endpoint]) -> Endpoint | None:
        self._turn += 1
        return endpoints[self._turn % len(endpoints)] if endpoints else None

    def set_endpoints(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """The live snapshot: adds and removes endpoints; beliefs of the same (id, epoch) stay."""
        self._endpoints = tuple(endpoints)

    def place(self, asks: Sequence[Ask], now: float) -> list[Booking | None]:
        """Place the asks of one turn, booking as it goes. None where no endpoint qualifies. Same order as `asks`."""
        return [self._place(ask) for ask in asks]

    def report(self, endpoint_id: str, load: Load, now: float) -> None:
        """A worker's load report; beliefs that disagree with it for longer than a report period follow it."""

    def warm_up(self) -> None:
        """Compile (or load from the cache) the kernel, so that no request waits for it."""

    def _place(self, ask: Ask) -> Booking | None:
        fit = [
            one
            for one in self.live()
            if one.id not in ask.excluded
            and ask.capability in one.record.capabilities
            and (not ask.adapter or ask.adapter in one.record.adapters)
        ]
        prefills = [one for one in fit if one.record.role == "prefill"]
        wholes = [one for one in fit if one.record.role.decodes]
        if prefills and not ask.undivided:
            return Booking(self, ask, Placement(None, self.next_of(prefills), 0, 0, None, None, "round-robin"))
        chosen = self.next_of(wholes)
        return None if chosen is None else Booking(self, ask, Placement(chosen, None, 0, 0, None, None, "round-robin"))
