"""What routers measured of engines, as pools get it."""

import msgspec
import numpy as np
from penstock_autoscaler.fits import FRESH_S, MOST_POOLS, Fits
from penstock_core.endpoint import Role
from penstock_core.profile_fit import PoolFit
from penstock_core.traffic import Ended, Window
from scaling_world import PROFILE, pool

SLOW = PoolFit(
    pool="decode",
    declared=PROFILE.name,
    row=tuple(PROFILE.at_speed(0.5).coefficients().tolist()),
    samples=400,
    interval_ratio=0.1,
    prefill_ratio=2.0,
    decode_ratio=2.0,
)
POOLS = (pool("prefill", Role.PREFILL), pool("decode", Role.DECODE))


def heard(*fits: PoolFit, at_s: float = 100.0) -> Window:
    nothing = np.zeros(0)
    return Window(
        since_s=at_s - 5.0,
        until_s=at_s,
        arrival_s=nothing,
        prompt_tokens=nothing.astype(np.int64),
        ended=Ended.of([]),
        arrivals=0,
        endings=0,
        fits=fits,
    )


def test_only_the_pool_that_was_measured_is_corrected() -> None:
    """Its seconds are the measured ones; its memory and bounds are its own."""
    fits = Fits()
    assert fits.corrected(POOLS, 100.0) == POOLS
    fits.hear(heard(SLOW))
    prefill, decode = fits.corrected(POOLS, 100.0)
    assert prefill == POOLS[0]
    assert decode.fit == SLOW
    assert decode.profile.decode_s(8, 9_000) == 2.0 * PROFILE.decode_s(8, 9_000)
    assert msgspec.structs.replace(decode, profile=PROFILE, fit=None) == POOLS[1]


def test_a_fit_stays_while_its_replicas_are_away_and_not_for_ever() -> None:
    """Windows that say nothing of a pool change nothing, until what was said is too old; it is handed on while it is fresh."""
    fits = Fits()
    fits.hear(heard(SLOW))
    fits.hear(heard(at_s=200.0))
    late_s = 100.0 + FRESH_S
    assert fits.corrected(POOLS, late_s - 1.0)[1].fit == SLOW
    assert Fits(fits.kept(late_s - 1.0)).corrected(POOLS, late_s - 1.0)[1].fit == SLOW
    assert fits.corrected(POOLS, late_s) == POOLS
    assert fits.kept(late_s) == []


def test_rows_that_cannot_be_read_are_left_out() -> None:
    """Too short, or without a number: the declaration holds."""
    for row in (SLOW.row[:-1], (float("nan"), *SLOW.row[1:])):
        fits = Fits()
        fits.hear(heard(msgspec.structs.replace(SLOW, row=row)))
        assert fits.corrected(POOLS, 100.0) == POOLS


def test_what_is_remembered_is_bounded() -> None:
    """However many pools are named."""
    fits = Fits()
    fits.hear(heard(*(msgspec.structs.replace(SLOW, pool=f"pool-{n}") for n in range(MOST_POOLS + 10))))
    assert len(fits.kept(100.0)) == MOST_POOLS
