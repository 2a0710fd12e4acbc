"""A decision as it is told to users: with the sizes it found, and how often it was taken in a row. Wire form and reading.

`loop` writes it, `penstock explain scaling` and `penstock status` read it. Unknown fields are passed over, so either may be newer.
"""

from collections.abc import Iterable

import msgspec
from penstock_core.profile_fit import PoolFit

from penstock_autoscaler.decision import Decision
from penstock_autoscaler.observation import Start, Target


class PoolThen(msgspec.Struct, frozen=True, kw_only=True):
    """A pool when it was decided on."""

    name: str
    role: str
    desired: int
    """Before the decision."""
    ready: int
    starting: int
    min_replicas: int
    max_replicas: int
    start_s: float
    accelerators: int = 1
    start: Start | None = None
    """Its phases; None: nothing has started yet, and start_s is the profile's."""
    fit: PoolFit | None = None
    """What its profile was corrected by, without the row; None: it was as declared."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """One decision, or a run of decisions that say the same; the last of the run is kept."""

    decision: Decision
    pools: tuple[PoolThen, ...]
    first_s: float
    """When the run began, on the clock of the Windows."""
    times: int = 1
    seconds: float = 0.0
    """What deciding took."""
    target: Target | None = None
    """What was to be reached; None: an older autoscaler did not say."""
    trouble: str = ""
    """Why it could not be carried out; empty: it could, or there was nothing to do."""


_decoder = msgspec.json.Decoder(Told)


def encode_told(told: Told) -> bytes:
    return msgspec.json.encode(told)


def decode_told(written: Iterable[bytes]) -> list[Told]:
    """What can be read of them, in their order."""
    found = []
    for one in written:
        try:
            found.append(_decoder.decode(one))
        except msgspec.DecodeError:
            continue  # of another version
    return found


def follows(told: Told, before: Told | None) -> tuple[Told, bool]:
    """`told` as the next after `before`, and whether it only repeats it: same reason, same sizes before and after, same trouble."""
    if before is None or not _same(told, before):
        return told, False
    return msgspec.structs.replace(told, first_s=before.first_s, times=before.times + 1), True


def _same(one: Told, other: Told) -> bool:
    a, b = one.decision, other.decision
    return (a.reason, a.desired, a.switches, a.valid, one.trouble) == (b.reason, b.desired, b.switches, b.valid, other.trouble) and [
        pool.desired for pool in one.pools
    ] == [pool.desired for pool in other.pools]
