"""Runs every kernel once on toy arrays, so that compiling (or loading the cache) happens before the first request.

Called at start-up by the scheduler's owner. The argument types are those of `beliefs` and `policies`: other types would be
compiled again later.
"""

import numpy as np

from penstock_router import columns as col
from penstock_router import kernel
from penstock_router.admission import outlook


def warm_up() -> None:
    """Seconds where nothing is cached, a tenth of one where it is, nothing where numba is absent."""
    if not kernel.COMPILED:
        return
    rows, streams = np.zeros((2, col.ROW)), np.zeros((2, 2, col.CELL))
    table, owners = np.zeros((1, 2, col.LONGEST_TOKENS + 1)), np.full(1, -1, np.int32)
    slots, chunks, both, numbers = np.zeros(0, np.uint16), np.zeros(0, np.int32), np.arange(2), np.ones(col.ASK)
    rows[:, col.PARTNER] = -1.0
    kernel.least_cost(rows, streams, table, both, owners, slots, chunks, numbers, 1, False, False)
    kernel.least_pair(rows, streams, table, both, both, owners, slots, chunks, numbers, 1, 16)
    kernel.least_step(rows, both, owners, slots, chunks, numbers, 1)
    kernel.least_running(rows, both, owners, slots, chunks, numbers, 1, -1.0)
    kernel.book(rows, 0, 1.0, 1.0, 0.0)
    kernel.book_prompt(rows, streams, 0, 0.0, numbers, False)
    kernel.computed(rows, 0, 1.0, 0.0)
    kernel.withdraw(rows, 0, 0.0, 0.0)
    kernel.advance(rows, 0, 0.0)
    kernel.through_s(rows, 0, 1.0, 1.0, 0.0)
    outlook.warm_up()
