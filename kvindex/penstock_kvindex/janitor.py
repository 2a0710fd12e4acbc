"""Keeps the shared table clean: takes out what gave-up workers held and holds the table to its bound, a piece at a time.

Every router runs one; they share one pass, so it does not matter how many run or which of them stops. It must not know
how a store keeps its table.
"""

import asyncio
import logging
import random

from penstock_core.errors import IndexUnavailable

from penstock_kvindex.index import SharedIndex

_log = logging.getLogger(__name__)

BUCKETS_A_TURN = 4_096
"""A table for four million chunks is walked in 16 turns."""


async def run_janitor(index: SharedIndex, *, interval_s: float = 1.0, buckets: int = BUCKETS_A_TURN) -> None:
    """Sweep every `interval_s` (spread by a fifth) until cancelled."""
    while True:
        try:
            dropped = await index.sweep(buckets)
            if dropped:
                _log.info("index: %d entries of gone workers or beyond the bound dropped", dropped)
        except IndexUnavailable as error:
            _log.debug("index not swept: %s", error)
        except Exception:  # noqa: BLE001  the task's top: it logs and tries again
            _log.exception("sweeping the index failed, trying again")
        await asyncio.sleep(interval_s * random.uniform(0.8, 1.2))  # noqa: S311  spreading routers, not guarding anything
