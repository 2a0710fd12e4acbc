"""How fast engines really compute, as routers have measured: the latest word on each pool, put in the place of what is declared.

`loop` and the simulator's loop each keep a Fits, tell it what they read, and correct the pools of every observation with it. It decides
nothing, and remembers a pool's fit while its replicas are away.
"""

from collections.abc import Sequence

import msgspec
from penstock_core.profile_fit import PoolFit
from penstock_core.traffic import Window

from penstock_autoscaler.observation import Pool

FRESH_S = 3_600.0
"""A fit that nobody has repeated for so long is of engines that may be others by now."""
MOST_POOLS = 64


class HeardFit(msgspec.Struct, frozen=True):
    """What was said of a pool, and when."""

    fit: PoolFit
    at_s: float


class Fits:
    """State: what was heard last of each pool."""

    def __init__(self, heard: Sequence[HeardFit] = ()) -> None:
        """`heard`: what another one `kept`."""
        self._heard = {one.fit.pool: one for one in heard[:MOST_POOLS]}

    def hear(self, traffic: Window) -> None:
        """Routers have told of an interval."""
        for fit in traffic.fits:
            if fit.pool in self._heard or len(self._heard) < MOST_POOLS:
                self._heard[fit.pool] = HeardFit(fit, traffic.until_s)

    def kept(self, now_s: float) -> list[HeardFit]:
        """For whoever goes on; what is too old is forgotten."""
        self._heard = {pool: one for pool, one in self._heard.items() if now_s - one.at_s < FRESH_S}
        return list(self._heard.values())

    def corrected(self, pools: Sequence[Pool], now_s: float) -> tuple[Pool, ...]:
        """The pools with the profile that is in force; those of which nothing is known, or nothing lately, as they are."""
        return tuple(self._corrected(pool, now_s) for pool in pools)

    def _corrected(self, pool: Pool, now_s: float) -> Pool:
        known = self._heard.get(pool.name)
        if known is None or not known.fit.row or now_s - known.at_s >= FRESH_S:
            return pool
        try:
            return msgspec.structs.replace(pool, profile=pool.profile.timed(known.fit.row), fit=known.fit)
        except ValueError:
            return pool  # of a router of another version
