"""Places requests on endpoints: filter, ask the policy, book. One Scheduler a served model.

The director hands over the asks of one turn of its event loop and gets a Booking for each; the simulator calls the same
objects with its own clock. Nothing here reads a clock, a socket or a random source of its own: `now` and `rng` are
arguments. It must not know bodies, headers or how a leg is carried out.
"""

import math
import struct
from collections.abc import Hashable, Mapping, Sequence
from random import Random
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.endpoint import Endpoint, Load
from penstock_core.placement import Placement
from penstock_core.profile import PASS_TOKENS, TRANSFER_TOKEN
from penstock_core.slo import DEFAULT_SLO, Slo

from penstock_router import columns as col
from penstock_router import kernel, warmth
from penstock_router.admission.gate import Declined, Gate
from penstock_router.beliefs import Beliefs
from penstock_router.booking import Booking
from penstock_router.cohorts import Cohort, Wanted, gather, takers
from penstock_router.fitted import FittedProfiles
from penstock_router.length_classes import LengthClasses
from penstock_router.passes import PassWatch
from penstock_router.policies import Choice, Policy, Query, policy_named
from penstock_router.residuals import ItlMargin
from penstock_router.turn_order import Need, longest_first, tightest_first

__all__ = ["Ask", "Booking", "Held", "Options", "Scheduler"]


class Held(Protocol):
    """Which endpoints hold how much of a prompt, as the index mirror answers (its `Hits` fits).

    Both arrays contiguous and writable: of any other layout numba would compile the kernel again, in the middle of a request.
    """

    @property
    def slots(self) -> NDArray[np.uint16]:
        """Index slots, shape (holders,)."""

    @property
    def chunks(self) -> NDArray[np.int32]:
        """Leading chunks that each holds, shape (holders,)."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler needs to know of one request."""

    prompt_tokens: int
    """Estimate of n; at least 1 is assumed."""
    tokens_per_chunk: float = 64.0
    """Estimated tokens in a chunk of the index."""
    hits: Held | None = None
    hits_by_id: Mapping[str, int] | None = None
    """Leading chunks by endpoint id, for endpoints without a slot; wins over `hits`."""
    max_tokens: int | None = None
    length_class: Hashable = None
    """Requests of one class may have output lengths of their own (`length_classes.class_of`); None: no class."""
    output_tokens: int | None = None
    """Exactly so many tokens will come; None: not known."""
    slo: Slo = DEFAULT_SLO
    waited_s: float = 0.0
    """Seconds of the TTFT target that are over already."""
    undivided: bool = False
    """Place on one endpoint that prefills and decodes (no connector, or after a failed prefill leg)."""
    capability: str = "chat"
    adapter: str = ""
    excluded: frozenset[str] = frozenset()
    """Endpoint ids already tried."""
    explain: bool = False


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a scheduler behaves beside its policy."""

    shortlist: int = 16
    """Most endpoints per role that are paired with one another, 4..64."""
    turn_order: bool = True
    """Place the asks of one turn in the order of `turn_order`; False: as they came."""
    fitted: bool = True
    """Correct declared profiles by measured passes."""

    def __post_init__(self) -> None:
        if not 4 <= self.shortlist <= 64:
            raise ValueError(f"shortlist is {self.shortlist}; allowed: 4..64")


_NO_SLOTS = np.zeros(0, np.uint16)
_NO_CHUNKS = np.zeros(0, np.int32)
_LEAST_SPARE_S = 0.05
"""Costs are shares of what is left of the TTFT target, taken as at least this."""
_MOST_COHORTS = 256
"""Kept cohorts; client-chosen adapter names must not make them grow for ever."""


class Scheduler:
    """Endpoints, what is believed of them, and the policy that chooses. Not thread-safe: one event loop owns it.

    `now` is a float everywhere, seconds of one steady clock (an int would make numba compile once more).
    """

    def __init__(self, policy: str | Policy, *, rng: Random, options: Options | None = None) -> None:
        self._options = options or Options()
        self._policy = policy_named(policy, self._options.shortlist) if isinstance(policy, str) else policy
        self._rng = rng
        self.beliefs = Beliefs()
        self.lengths = LengthClasses()
        self.profiles = FittedProfiles(self.beliefs)
        self.passes = PassWatch(self.beliefs, self.profiles.take)
        self.itl_margin = ItlMargin()
        self.open_gate = Gate(self.lengths, self.itl_margin)
        """Judges nothing: what the policy chooses is booked."""
        self._query = Query(self.lengths.tables)
        self._row_of_id: dict[str, int] = {}
        self._live: dict[int, Endpoint] = {}
        self._cohorts: dict[tuple[str, str, bool], Cohort] = {}
        self._groups: dict[tuple[str, str], float] = {}
        self._told_draining: set[int] = set()
        self.conflicts = 0
        """Bookings corrected by load reports so far."""

    @property
    def policy(self) -> Policy:
        return self._policy

    @property
    def trusted(self) -> bool:
        """Whether its TTFT predictions are near enough to the truth to make requests wait by them."""
        return self.profiles.residuals.trusted

    def set_endpoints(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """The snapshot of live endpoints: adds and removes; beliefs of the same (id, epoch) stay."""
        wanted = {one.id: one for one in endpoints}
        for gone in [known for known in self._row_of_id if known not in wanted]:
            self._forget(gone)
        for endpoint_id, endpoint in wanted.items():
            row = self._row_of_id.get(endpoint_id)
            known = None if row is None else self.beliefs.endpoints[row]
            if row is None or known is None or known.record.epoch != endpoint.record.epoch:
                self._forget(endpoint_id)
                row = self._row_of_id[endpoint_id] = self.beliefs.add(endpoint)
                self.passes.begin(row)
                self.profiles.join(row, endpoint)
            else:
                self.beliefs.update(row, endpoint)
            record = endpoint.record
            self.beliefs.rows[row, col.GROUP] = (
                -1.0 if record.connector == "none" else self._groups.setdefault((record.kv_generation, record.connector), len(self._groups))
            )
        self._sort_out()

    def _forget(self, endpoint_id: str) -> None:
        row = self._row_of_id.pop(endpoint_id, None)
        if row is not None:
            self._told_draining.discard(row)
            self.profiles.leave(row)
            self.beliefs.remove(row)

    def _sort_out(self) -> None:
        """Anew: who is live and not draining, and with that all cohorts."""
        self._cohorts.clear()
        self._live = {
            row: endpoint
            for row in self._row_of_id.values()
            if (endpoint := self.beliefs.endpoints[row]) is not None and not endpoint.draining and row not in self._told_draining
        }

    def order(self, asks: Sequence[Ask]) -> Sequence[int]:
        """In which order the asks of one turn should be placed and sent: their indices. See `turn_order`."""
        if len(asks) == 1 or not self._options.turn_order:
            return range(len(asks))
        cohorts = [self._cohort(ask) for ask in asks]
        if any(len(cohort.wholes) for cohort in cohorts):
            return longest_first([ask.prompt_tokens for ask in asks])
        workers = max(len(cohort.prefills) for cohort in cohorts)
        return tightest_first([self._need(ask, cohort) for ask, cohort in zip(asks, cohorts, strict=True)], workers)

    def _need(self, ask: Ask, cohort: Cohort) -> Need:
        if not len(cohort.prefills):
            return Need(0.0, 0.0)
        r, rows = int(cohort.prefills[0]), self.beliefs.rows
        chunks = max(ask.hits_by_id.values(), default=0) if ask.hits_by_id else 0
        if ask.hits is not None and len(ask.hits.chunks):
            chunks = max(chunks, int(ask.hits.chunks.max()))
        new = max(1.0, ask.prompt_tokens - chunks * ask.tokens_per_chunk)
        alone_s = float(kernel.through_s(rows, r, new, rows[r, PASS_TOKENS], 0.0))
        return Need(alone_s, ask.slo.ttft_s - ask.waited_s - alone_s - ask.prompt_tokens * float(rows[r, TRANSFER_TOKEN]))

    def place(self, asks: Sequence[Ask], now: float) -> list[Booking | None]:
        """Place the asks of one turn one after the other, booking as it goes. None where no endpoint qualifies."""
        return [self.place_one(ask, now) for ask in asks]

    def place_one(self, ask: Ask, now: float) -> Booking | None:
        """None where no endpoint qualifies."""
        placed = self.attempt(ask, now, self.open_gate)
        return placed if isinstance(placed, Booking) else None

    def attempt(self, ask: Ask, now: float, gate: Gate) -> Booking | Declined | None:
        """Place one ask unless the gate declines the placement that the policy chose; then nothing is booked.

        None where no endpoint qualifies.
        """
        cohort = self._cohort(ask)
        choice = self._choose(ask, cohort, now)
        if choice is None:
            return None
        declined = gate.start(choice, cohort, self._query, self.beliefs)
        if declined is not None:
            return declined
        booking = Booking(self, ask, now)
        self._booked(booking, ask, choice, cohort, now)
        return booking

    def _choose(self, ask: Ask, cohort: Cohort, now: float) -> Choice | None:
        """Where the policy would have the prompt prefilled; None where no endpoint qualifies."""
        if not len(cohort.starters):
            return None
        self._fill(ask, now)
        self._query.seed = self._rng.getrandbits(32)
        if not ask.hits_by_id:
            return self._policy.start(self._query, cohort, self.beliefs)
        self._hold(ask.hits_by_id, True)
        choice = self._policy.start(self._query, cohort, self.beliefs)
        self._hold(ask.hits_by_id, False)
        return choice

    def _booked(self, booking: Booking, ask: Ask, choice: Choice, cohort: Cohort, now: float) -> None:
        """What the gate has booked is the booking's; write the placement."""
        row, hit, ttft_s, cells = choice.row, choice.hit_tokens, choice.ttft_s, self._query.cells
        endpoint = self.beliefs.endpoints[row]
        prompt = cells[col.PROMPT]
        if choice.divided:
            transfer_s = prompt * self.beliefs.row_cells[row * col.ROW + TRANSFER_TOKEN]
            expected_s = 0.0 if ttft_s is None or len(cohort.pair_prefills) else ttft_s - transfer_s
            booking.takes_prefill(row, prompt - hit, prompt, expected_s, now)
        else:
            booking.takes_whole(row, prompt - hit, cells[col.KV_NEED], ttft_s or 0.0, now)
        reason = "prefill-fallback" if cohort.fallback else "only-candidate" if len(cohort.starters) == 1 else self._policy.reason
        chunks = round(hit / ask.tokens_per_chunk) if hit else 0
        whole, first = (None, endpoint) if choice.divided else (endpoint, None)
        booking.placement = Placement(whole, first, chunks, hit, ttft_s, choice.itl_s, reason, choice.candidates)

    def elsewhere(self, ask: Ask, endpoint_id: str, whole: bool, hit_tokens: int, now: float) -> Booking | None:
        """Another router has placed this there: its booking in these beliefs; None where the endpoint is not known."""
        row = self._row_of_id.get(endpoint_id)
        if row is None:
            return None
        self._fill(ask, now)
        booking, numbers = Booking(self, ask, now), self._query.numbers
        booking.elsewhere = True
        prompt, need = float(numbers[col.PROMPT]), float(numbers[col.KV_NEED])
        hit = min(float(hit_tokens), prompt - 1.0)
        kernel.book_prompt(self.beliefs.rows, self.beliefs.streams, row, hit, numbers, not whole)
        if whole:
            booking.takes_whole(row, prompt - hit, need, 0.0, now)
        else:
            booking.takes_prefill(row, prompt - hit, prompt, 0.0, now)
        return booking

    def bind_elsewhere(self, booking: Booking, ask: Ask, endpoint_id: str, now: float) -> None:
        """For `Booking.bound_elsewhere`."""
        row = self._row_of_id.get(endpoint_id)
        if row is not None:
            booking.take_decode(row, float(max(1, ask.prompt_tokens) + self.expected_tokens(ask)), now)

    def alike(self, endpoint_id: str) -> list[str]:
        """Ids of all endpoints of the same role, itself among them, in an order that all routers share."""
        known = [one for one in self.beliefs.endpoints if one is not None and one.id in self._row_of_id]
        role = next(one.record.role for one in known if one.id == endpoint_id)
        return sorted(one.id for one in known if one.record.role is role)

    def bind(self, booking: Booking, ask: Ask, group: float, tried: frozenset[str], now: float) -> Endpoint | None:
        """For `Booking.bind_decode`: the decode endpoint within KV group `group`, or −1: one for the whole request."""
        wanted = Wanted(ask.capability, ask.adapter, True, tried)
        if group < 0.0:
            cohort, before = gather(self.beliefs, self._live, wanted), booking.placement
            choice = self._choose(ask, cohort, now)
            if choice is None:
                return None
            self.open_gate.start(choice, cohort, self._query, self.beliefs)
            self._booked(booking, ask, choice, cohort, now)
            booking.placement = msgspec.structs.replace(booking.placement, reason="prefill-fallback", candidates=before.candidates)
            return booking.placement.decode
        self._fill(ask, now)
        self._query.seed = self._rng.getrandbits(32)
        row = self._policy.decode(self._query, takers(self.beliefs, self._live, wanted, group), self.beliefs)
        if row is None:
            return None
        booking.take_decode(row, self._query.cells[col.KV_NEED], now)
        return self.beliefs.endpoints[row]

    def _fill(self, ask: Ask, now: float) -> None:
        """Write the query, but for its seed."""
        query, slo, hits = self._query, ask.slo, ask.hits
        prompt, spare_s, due_s = ask.prompt_tokens or 1, max(_LEAST_SPARE_S, slo.ttft_s - ask.waited_s), now + slo.ttft_s - ask.waited_s
        need, (most, kind) = prompt + self.expected_tokens(ask), self.length_of(ask)
        _write_ask(query.cells, 0, now, prompt, ask.tokens_per_chunk, spare_s, slo.itl_s, need, 0.0, due_s, most, kind)
        query.explain = ask.explain
        if hits is None or ask.hits_by_id:
            query.slots, query.chunks = _NO_SLOTS, _NO_CHUNKS
        else:
            query.slots, query.chunks = hits.slots, hits.chunks

    def expected_tokens(self, ask: Ask) -> int:
        """Tokens that the answer is expected to have."""
        return self.lengths.expected_tokens(ask.length_class, ask.max_tokens) if ask.output_tokens is None else ask.output_tokens

    def length_of(self, ask: Ask) -> tuple[float, int]:
        """(most output tokens, length class), as cells hold them."""
        if ask.output_tokens is not None:
            return ask.output_tokens, col.KNOWN
        return math.inf if ask.max_tokens is None else ask.max_tokens, self.lengths.follows(ask.length_class)

    def _hold(self, hits_by_id: Mapping[str, int], held: bool) -> None:
        for endpoint_id, chunks in hits_by_id.items():
            row = self._row_of_id.get(endpoint_id)
            if row is not None:
                self.beliefs.row_cells[row * col.ROW + col.HELD_CHUNKS] = chunks if held else 0.0

    def _cohort(self, ask: Ask) -> Cohort:
        if ask.excluded:  # a second attempt: rare, and no two alike
            return gather(self.beliefs, self._live, Wanted(ask.capability, ask.adapter, ask.undivided, ask.excluded))
        kind = (ask.capability, ask.adapter, ask.undivided)
        cohort = self._cohorts.get(kind)
        if cohort is None:
            cohort = gather(self.beliefs, self._live, Wanted(*kind, frozenset()))
            if len(self._cohorts) < _MOST_COHORTS:
                self._cohorts[kind] = cohort
        return cohort

    def report(self, endpoint_id: str, load: Load, now: float) -> None:
        """A worker's load report; beliefs that disagree with it for longer than a report period follow it."""
        row = self._row_of_id.get(endpoint_id)
        if row is None:
            return
        if load.draining != (row in self._told_draining):
            (self._told_draining.add if load.draining else self._told_draining.discard)(row)
            self._sort_out()
        self.conflicts += self.beliefs.report(row, load, now)

    def rest(self, now: float) -> None:
        """A request is over: time to learn from what was measured."""
        self.profiles.learn(now, self._options.fitted)

    def learn_itl(self, missed: bool) -> None:
        """Whether a stream that has ended missed its ITL target."""
        self.itl_margin.observe(missed)

    def warm_up(self) -> None:
        """Compile (or load from the cache) the kernel, so that no request waits for it: seconds the first time."""
        warmth.warm_up()


_write_ask = struct.Struct(f"={col.ASK}d").pack_into
"""Writes the columns of one ask, in their order, in one call."""
