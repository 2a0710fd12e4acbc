"""What this router believes of its endpoints, from its own placements, first tokens and completions, and load reports.

Owns the flat arrays (`columns`) that the kernel computes on: a row an endpoint, a block of cells for its decoding streams.
Bookings move it, the scheduler adds and removes rows. It knows no policy and no request; `now` is an argument everywhere.
"""

import struct
from collections import deque
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from penstock_core.endpoint import Endpoint, Load, Role
from penstock_core.profile import COEFFICIENTS

from penstock_router import columns as col
from penstock_router import kernel

SLOTS = 65_536
_FEW = 8
"""Cells per row to begin with; doubled when an endpoint has more streams."""
_TOLERANCE = 0.25
_TOLERANCE_TOKENS = 1_024
_TOLERANCE_STREAMS = 2
_REPORT_PERIOD_S = 1.0
"""Leases are renewed, and loads reported, this often at least."""
_OLDEST_REPORT_S = 6.0
"""A report may tell of a moment this long ago: it agrees when it agrees with anything believed since then."""
_BUCKET_S = 0.25


class Streaming(Protocol):
    """Whoever owns a cell, as a stream or as a prompt that waits: it is told when its cell moves."""

    cell: int
    """Offset of its cell in `Beliefs.cells`; −1 without one."""


class Beliefs:
    """Rows live as long as their endpoint is known or a booking refers to them."""

    def __init__(self, rows: int = 16) -> None:
        self.rows = np.zeros((rows, col.ROW))
        self.streams = np.zeros((rows, _FEW, col.CELL))
        self.row_of_slot: NDArray[np.int32] = np.full(SLOTS, -1, np.int32)
        self._views()
        self.endpoints: list[Endpoint | None] = [None] * rows
        self._owners: list[list[Streaming]] = [[] for _ in range(rows)]
        self._bookings = [0] * rows
        self._leaving = [False] * rows
        self._disagree_since: list[float | None] = [None] * rows
        self._believed: list[deque[_Believed]] = [deque() for _ in range(rows)]
        self._free = list(range(rows - 1, -1, -1))
        self.conflicts = 0

    def _views(self) -> None:
        # Plain memoryviews: an element costs 30 ns there and 100 ns in numpy. Taken anew whenever an array grows.
        self.row_cells: memoryview[float] = self.rows.reshape(-1).data.cast("B").cast("d")
        self.cells: memoryview[float] = self.streams.reshape(-1).data.cast("B").cast("d")
        self._most_cells = self.streams.shape[1]  # of one row

    # -- endpoints ------------------------------------------------------------------------------------------------

    def add(self, endpoint: Endpoint) -> int:
        """A row for a new endpoint; beliefs begin empty."""
        if not self._free:
            self._grow_rows()
        r = self._free.pop()
        self.rows[r] = 0.0
        self.rows[r, :COEFFICIENTS] = endpoint.record.profile.coefficients()
        self.rows[r, col.KV_TOTAL] = endpoint.record.kv_total_tokens
        self.rows[r, col.GROUP] = -1.0
        self.rows[r, col.DEDICATED] = float(endpoint.record.role is not Role.BOTH)
        self._bookings[r], self._leaving[r] = 0, False
        self._disagree_since[r] = None
        self._believed[r].clear()
        self.update(r, endpoint)
        return r

    def update(self, r: int, endpoint: Endpoint) -> None:
        """The same endpoint in a new snapshot: its slot may have changed."""
        old = self.endpoints[r]
        if old is not None and old.slot is not None and self.row_of_slot[old.slot] == r:
            self.row_of_slot[old.slot] = -1
        if endpoint.slot is not None:
            self.row_of_slot[endpoint.slot] = r
        self.endpoints[r] = endpoint

    def replace_profile(self, r: int, coefficients: NDArray[np.float64]) -> None:
        """Take other coefficients (of a fitted profile) for row r; shape (COEFFICIENTS,)."""
        self.rows[r, :COEFFICIENTS] = coefficients

    def remove(self, r: int) -> None:
        """The endpoint is gone; the row goes once its last booking is released."""
        endpoint = self.endpoints[r]
        if endpoint is not None and endpoint.slot is not None and self.row_of_slot[endpoint.slot] == r:
            self.row_of_slot[endpoint.slot] = -1
        self._leaving[r] = True
        self._free_when_unused(r)

    def _free_when_unused(self, r: int) -> None:
        if self._leaving[r] and not self._bookings[r]:
            self._leaving[r] = False
            self.endpoints[r] = None
            self._free.append(r)

    def _grow_rows(self) -> None:
        old = len(self.rows)
        self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
        self.streams = np.concatenate([self.streams, np.zeros_like(self.streams)])
        self._views()
        self.endpoints += [None] * old
        self._owners += [[] for _ in range(old)]
        self._bookings += [0] * old
        self._leaving += [False] * old
        self._disagree_since += [None] * old
        self._believed += [deque() for _ in range(old)]
        self._free += range(2 * old - 1, old - 1, -1)

    # -- legs -----------------------------------------------------------------------------------------------------

    def book(self, r: int, kv_tokens: float, now: float) -> None:
        """A leg without a prompt to compute is placed at row r."""
        self._bookings[r] += 1
        kernel.book(self.rows, r, 0.0, kv_tokens, now)

    def booked_prompt(self, r: int, owner: Streaming) -> None:
        """The kernel's `book_prompt` has put a prompt into the row's next cell: it is the owner's."""
        self._bookings[r] += 1
        self._take_cell(r, owner)

    def release(self, r: int, kv_tokens: float) -> None:
        """A leg at row r is over."""
        view, base = self.row_cells, r * col.ROW
        view[base + col.KV_BOOKED] -= kv_tokens
        view[base + col.RUNNING] -= 1.0
        self._bookings[r] -= 1
        if self._leaving[r]:
            self._free_when_unused(r)

    def add_streams(self, r: int, streams: int, context_tokens: float) -> None:
        """Change b and C of row r."""
        view, base = self.row_cells, r * col.ROW
        view[base + col.STREAMS] += streams
        view[base + col.CONTEXT] += context_tokens

    def open_cell(self, r: int, owner: Streaming, now: float, target_itl_s: float, most_tokens: float, kind: int) -> None:
        """A stream at row r, of length class `kind`, has had its first token: give its owner a cell."""
        used = self._take_cell(r, owner)  # first: it may grow the cells
        _write_cell(self.cells, 8 * owner.cell, now, now, 1.0, target_itl_s, most_tokens, kind)
        self.row_cells[r * col.ROW + col.CELLS_USED] = used

    def _take_cell(self, r: int, owner: Streaming) -> int:
        """Give the owner the next cell of row r; how many are in use with it. One more is always there for the kernel to take."""
        owners = self._owners[r]
        owner.cell = (r * self._most_cells + len(owners)) * col.CELL
        owners.append(owner)
        used = len(owners)
        if used == self._most_cells:
            self._grow_cells()
        return used

    def close_cell(self, r: int, owner: Streaming) -> None:
        """Give a cell back; the row's last cell takes its place."""
        owners, at = self._owners[r], owner.cell
        last = owners.pop()
        if last is not owner:
            cells, there = self.cells, last.cell
            cells[at : at + col.CELL] = cells[there : there + col.CELL]
            owners[(at // col.CELL) % self._most_cells] = last
            last.cell = at
        owner.cell = -1
        self.row_cells[r * col.ROW + col.CELLS_USED] = len(owners)

    def newest_owner(self, r: int) -> Streaming | None:
        """The newest stream at row r that has had tokens; None where there is none."""
        cells = self.cells
        for one in reversed(self._owners[r]):
            if cells[one.cell + col.TOKENS] > 0.0:
                return one
        return None

    def _grow_cells(self) -> None:
        old = self._most_cells
        self.streams = np.concatenate([self.streams, np.zeros_like(self.streams)], axis=1)
        self._views()
        for r, owners in enumerate(self._owners):
            for index, owner in enumerate(owners):
                owner.cell = (r * 2 * old + index) * col.CELL

    # -- reports --------------------------------------------------------------------------------------------------

    def report(self, r: int, load: Load, now: float) -> bool:
        """Take a load report; True when beliefs that disagreed for longer than a report period were corrected by it."""
        cells, base = self.row_cells, r * col.ROW
        cells[base + col.KV_REPORTED] = load.kv_used_tokens
        if load.kv_total_tokens:
            cells[base + col.KV_TOTAL] = load.kv_total_tokens
        kernel.advance(self.rows, r, now)
        waiting = cells[base + col.BOOKED] + cells[base + col.FOREIGN_PROMPT] - cells[base + col.COMPUTED]
        running = cells[base + col.RUNNING] + cells[base + col.FOREIGN_STREAMS]
        believed = self._believed[r]
        _note(believed, waiting, running, now)
        if _agrees(believed, load):
            self._disagree_since[r] = None
            return False
        since = self._disagree_since[r]
        if since is None:
            self._disagree_since[r] = now
            return False
        if now - since < _REPORT_PERIOD_S:
            return False
        self._disagree_since[r] = None
        believed.clear()
        self._follow(self.rows[r], load, now)
        return True

    @staticmethod
    def _follow(row: NDArray[np.float64], load: Load, now: float) -> None:
        """Make the row say what the report says; what our own bookings cannot explain is foreign."""
        told = float(load.prefill_tokens)
        row[col.FOREIGN_PROMPT] = max(0.0, told - row[col.BOOKED])
        row[col.COMPUTED] = max(0.0, row[col.BOOKED] - told)
        row[col.PASSING], row[col.PASS_START_S] = 0.0, now
        foreign = max(0.0, load.running + load.waiting - row[col.RUNNING])
        row[col.FOREIGN_STREAMS] = foreign
        mean = row[col.CONTEXT] / row[col.STREAMS] if row[col.STREAMS] else load.kv_used_tokens / max(1, load.running)
        row[col.FOREIGN_CONTEXT] = foreign * mean


_write_cell = struct.Struct("=6d").pack_into
"""Writes the columns of one cell, in their order, in one call."""


class _Believed:
    """Least and most of what was believed of an endpoint at reports within a quarter of a second."""

    __slots__ = ("least_running", "least_waiting", "most_running", "most_waiting", "since_s")

    def __init__(self, waiting: float, running: float, now: float) -> None:
        self.since_s = now
        self.least_waiting = self.most_waiting = waiting
        self.least_running = self.most_running = running


def _note(believed: "deque[_Believed]", waiting: float, running: float, now: float) -> None:
    """Keep what is believed now; what is too old goes."""
    while believed and now - believed[0].since_s > _OLDEST_REPORT_S:
        believed.popleft()
    if not believed or now - believed[-1].since_s > _BUCKET_S:
        believed.append(_Believed(waiting, running, now))
        return
    last = believed[-1]
    last.least_waiting, last.most_waiting = min(last.least_waiting, waiting), max(last.most_waiting, waiting)
    last.least_running, last.most_running = min(last.least_running, running), max(last.most_running, running)


def _agrees(believed: "deque[_Believed]", load: Load) -> bool:
    """Whether the report is near something believed lately: it may be late, or have overtaken another."""
    told = load.running + load.waiting
    tokens, streams = max(_TOLERANCE_TOKENS, _TOLERANCE * load.prefill_tokens), max(_TOLERANCE_STREAMS, _TOLERANCE * told)
    newest = believed[-1]
    if abs(newest.most_waiting - load.prefill_tokens) <= tokens and abs(newest.most_running - told) <= streams:
        return True  # mostly
    return (
        min(one.least_waiting for one in believed) - tokens <= load.prefill_tokens <= max(one.most_waiting for one in believed) + tokens
        and min(one.least_running for one in believed) - streams <= told <= max(one.most_running for one in believed) + streams
    )
