"""One placed request: what its endpoints are believed to do for it, from placing to the end.

The director (or the simulator) gets it from the scheduler and tells it what happens; it moves the beliefs and gives
everything back in `done`. It sends nothing and reads no clock.
"""

from typing import TYPE_CHECKING

import msgspec
from penstock_core.endpoint import Endpoint
from penstock_core.placement import Placement

from penstock_router import columns as col
from penstock_router import kernel

if TYPE_CHECKING:
    from penstock_router.scheduling import Ask, Scheduler


_UNPLACED = Placement(None, None, 0, 0, None, None, "unplaced")


class Booking:
    """Made by the scheduler. Every call after `done` does nothing; calls that come twice or out of order do no harm.

    What most requests never have is not set on them: the class says what holds then.
    """

    placement = _UNPLACED
    cell = -1
    """In the beliefs: of its prompt while that waits, of its stream afterwards."""
    elsewhere = False
    """Another router placed it: what is known of it comes late, and nothing is learned from its times."""
    _new = 0.0  # prompt tokens booked and not through yet, at the prefill row, else at the decode row
    _expected_s = 0.0  # predicted seconds from placing to the end of the prefill; 0: nothing predicted
    _prefill_row = _decode_row = -1
    _prefill_kv = _decode_kv = 0.0
    _context_at = 0
    _group = -1.0  # KV group of the prefill that was done, or is being done, for this request
    _waits = False  # its prompt has a cell
    _streaming = False  # counted in b and C of the decode row
    _over = False

    def __init__(self, scheduler: "Scheduler", ask: "Ask", now: float) -> None:
        self._scheduler = scheduler
        self._beliefs = scheduler.beliefs
        self._ask = ask
        self._placed_s = now
        self._prompt = ask.prompt_tokens or 1

    # -- by the scheduler -----------------------------------------------------------------------------------------

    def takes_whole(self, r: int, new_tokens: float, kv_tokens: float, expected_s: float, now: float) -> None:
        """Its prompt has been booked at row r, where it will be decoded too."""
        self._decode_row, self._new, self._decode_kv, self._expected_s = r, new_tokens, kv_tokens, expected_s
        self._context_at = r * col.ROW + col.CONTEXT
        self._wait(r, now)

    def takes_prefill(self, r: int, new_tokens: float, kv_tokens: float, expected_s: float, now: float) -> None:
        """Its prompt has been booked at row r; it is decoded at a row that is bound later."""
        self._prefill_row, self._new, self._prefill_kv, self._expected_s = r, new_tokens, kv_tokens, expected_s
        self._group = self._beliefs.row_cells[r * col.ROW + col.GROUP]
        self._wait(r, now)

    def _wait(self, r: int, now: float) -> None:
        """The prompt is one of those that wait at row r."""
        new = self._new
        self._scheduler.passes.placed(r, self, new, self._prompt - new, now, not self.elsewhere)
        self._waits = True
        self._beliefs.booked_prompt(r, self)

    def take_decode(self, r: int, kv_tokens: float, now: float) -> None:
        """Decoded at row r after a prefill elsewhere: in the batch from now on, so that its siblings see it."""
        self._decode_row, self._decode_kv = r, kv_tokens
        self._context_at = r * col.ROW + col.CONTEXT
        self._beliefs.book(r, kv_tokens, now)
        self._scheduler.passes.pause(r)
        self._beliefs.add_streams(r, 1, self._prompt)
        self._streaming = True

    # -- by the director ------------------------------------------------------------------------------------------

    def bind_decode(self, now: float, excluded: frozenset[str] = frozenset()) -> Endpoint | None:
        """Choose the decode endpoint, or after a failure another one; None when there is none. `placement` follows.

        After `prefill_failed` it is one that prefills the prompt too.
        """
        if self._over:
            return None
        if self._decode_row >= 0:
            self._leave_decode(now)
        tried = excluded | self._ask.excluded
        endpoint = self._scheduler.bind(self, self._ask, self._group, tried, now)
        self.placement = msgspec.structs.replace(self.placement, decode=endpoint)
        return endpoint

    def bound_elsewhere(self, endpoint_id: str, now: float) -> None:
        """The router that placed it has bound its decode endpoint, or another one."""
        if self._over:
            return
        if self._decode_row >= 0:
            self._leave_decode(now)
        self._scheduler.bind_elsewhere(self, self._ask, endpoint_id, now)

    def progress(self) -> tuple[float, float] | None:
        """Tokens so far and when the last came; None before the first."""
        at = self.cell
        return None if at < 0 or self._waits else (self._beliefs.cells[at + 2], self._beliefs.cells[at + 1])

    def prefilled(self, now: float) -> None:
        """The prefill leg has answered: its tokens are through."""
        r = self._prefill_row
        if r < 0:
            return
        self._pass_ended(r, now)
        self._through(r, now)
        self._scheduler.profiles.check_ttft(r, self._expected_s, now - self._placed_s)
        self._prefill_over(r)

    def prefill_failed(self, now: float) -> None:
        """The prefill leg is given up, before or after it answered; the next `bind_decode` is for the whole request."""
        if self._over or self._group < 0:
            return
        self._leave_prefill(now)
        self._group = -1.0
        self.placement = msgspec.structs.replace(self.placement, prefill=None, reason="prefill-fallback", hit_chunks=0, hit_tokens=0)

    def first_token(self, now: float) -> None:
        """The first content token came from the decode endpoint."""
        if self.cell >= 0 and not self._waits:
            self.token(now)
            return
        r = self._decode_row
        if r < 0:
            return
        if self._prefill_row >= 0:
            self.prefilled(now)  # a prefill leg whose answer came later than the first token, or is never looked at
        if not self._streaming:
            self._pass_ended(r, now)
            self._through(r, now)
            self._scheduler.profiles.check_ttft(r, self._expected_s, now - self._placed_s)
            self._beliefs.add_streams(r, 1, self._prompt)
            self._streaming = True
        most_tokens, kind = self._scheduler.length_of(self._ask)
        self._beliefs.open_cell(r, self, now, self._ask.slo.itl_s, most_tokens, kind)
        self._beliefs.row_cells[self._context_at] += 1.0
        self._scheduler.passes.resume(r, self, now)

    def answered(self, now: float) -> None:
        """The answer came in one piece: its prompt is through, and there is no stream left that could be stalled. `done` follows.

        When the prompt was through nobody has seen, so nothing is learned of passes or of the TTFT.
        """
        if self._decode_row < 0 or not self._waits:
            return
        p = self._prefill_row
        r = p if p >= 0 else self._decode_row
        self._scheduler.passes.given_up(r, self)
        self._through(r, now)
        if p >= 0:
            self._prefill_over(p)

    def _through(self, r: int, now: float) -> None:
        """The prompt at row r is through its prefill."""
        kernel.computed(self._beliefs.rows, r, self._new, now)
        self._wait_over(r)

    def _pass_ended(self, r: int, now: float) -> None:
        if self.elsewhere:  # others' news come late
            self._scheduler.passes.given_up(r, self)
        else:
            self._scheduler.passes.ended(r, self, now)

    def token(self, now: float, tokens: float = 1.0) -> None:
        """Another content chunk came (or, told together, as many as `tokens` with the last at `now`). Called for every chunk."""
        at = self.cell
        if at >= 0 and not self._waits:
            beliefs = self._beliefs
            cells = beliefs.cells
            cells[at + 1] = now
            cells[at + 2] += tokens
            beliefs.row_cells[self._context_at] += tokens

    def facts(self, hit_tokens: int, prompt_tokens: int, now: float) -> None:
        """What the worker counted replaces the estimates. `hit_tokens` has come true by then: the pass is over or under way."""
        if self._over or prompt_tokens <= 0:
            return
        if self._new:
            r = self._prefill_row if self._prefill_row >= 0 else self._decode_row
            self._scheduler.passes.counted(r, self, prompt_tokens - hit_tokens, hit_tokens)
        more = prompt_tokens - self._prompt
        if not more:
            return
        self._prompt = prompt_tokens
        if self._streaming:
            self._beliefs.add_streams(self._decode_row, 0, more)
        if self._decode_row >= 0:
            self._beliefs.row_cells[self._decode_row * col.ROW + col.KV_BOOKED] += more
            self._decode_kv += more

    def done(self, now: float, output_tokens: int | None = None) -> None:
        """Over: release everything. `output_tokens` is None unless the answer came to its normal end."""
        if self._over:
            return
        if output_tokens is not None:
            self._scheduler.lengths.observe(self._ask.length_class, output_tokens)
        if self._prefill_row >= 0:
            self._leave_prefill(now)
        if self._decode_row >= 0:
            self._leave_decode(now)
        self._over = True
        self._scheduler.rest(now)

    def _wait_over(self, r: int) -> None:
        """The prompt waits no more at row r."""
        self._new = 0.0
        if self._waits:
            self._waits = False
            self._beliefs.close_cell(r, self)

    def _leave_prefill(self, now: float) -> None:
        if self._prefill_row >= 0:
            self._scheduler.passes.given_up(self._prefill_row, self)
            kernel.withdraw(self._beliefs.rows, self._prefill_row, self._new, now)
            self._wait_over(self._prefill_row)
            self._prefill_over(self._prefill_row)

    def _prefill_over(self, r: int) -> None:
        self._beliefs.release(r, self._prefill_kv)
        self._prefill_row = -1

    def _leave_decode(self, now: float) -> None:
        r, beliefs = self._decode_row, self._beliefs
        tokens = 0.0
        if self.cell >= 0 and not self._waits:
            self._scheduler.passes.pause(r)
            cells, at = beliefs.cells, self.cell
            tokens, span_s = cells[at + 2], cells[at + 1] - cells[at]
            beliefs.close_cell(r, self)
            if tokens > 1.0:
                self._learn_itl(r, span_s / (tokens - 1.0))
        if self._streaming:
            beliefs.add_streams(r, -1, -(self._prompt + tokens))
            self._streaming = False
            self._scheduler.passes.resume(r, None, now)
        elif self._new:  # placed here whole, and no token yet
            self._scheduler.passes.given_up(r, self)
            kernel.withdraw(beliefs.rows, r, self._new, now)
            self._wait_over(r)
        beliefs.release(r, self._decode_kv)
        self._decode_row = -1

    def _learn_itl(self, r: int, mean_itl_s: float) -> None:
        cells, at = self._beliefs.row_cells, r * col.ROW + col.MISS_RATIO
        missed = mean_itl_s > self._ask.slo.itl_s
        cells[at] += _LATELY * ((1.0 if missed else 0.0) - cells[at])
        self._scheduler.learn_itl(missed)


_LATELY = 0.05
"""Weight of the newest stream in an endpoint's ratio of ITL misses."""
