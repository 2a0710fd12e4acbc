"""What the autoscaler decides, with its reason in a word, in a sentence and in numbers. Values only.

`loop` carries a Decision out through an actuator, and it is what status, log, metrics and `penstock explain scaling` show.
"""

from enum import StrEnum

import msgspec
from penstock_core.endpoint import Role


class Reason(StrEnum):
    """One a decision; also the label of `penstock_autoscaler_decisions_total`."""

    STEADY = "steady"
    """The size is right."""
    UP = "up"
    DOWN = "down"
    SWITCH = "switch"
    WAITING = "waiting"
    """A smaller size would do, but not for long enough yet, or the change would not pay."""
    LIMITED = "limited"
    """More is needed than bounds or budget allow."""
    NO_DATA = "no_data"
    """Nothing is known: nothing is changed."""
    PAUSED = "paused"
    OVERRIDDEN = "overridden"
    """Somebody else sets the size."""


class RoleSwitch(msgspec.Struct, frozen=True):
    """A replica leaves its pool for another one, without a restart."""

    replica: str
    pool: str
    role: Role


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Desired replicas per pool at one moment."""

    at_s: float
    desired: dict[str, int]
    """By pool, switches counted as done; every pool of the observation is named."""
    switches: tuple[RoleSwitch, ...] = ()
    late: tuple[str, ...] = ()
    """Ids of replicas that should have been ready long ago: not counted in `desired`. An actuator that can replace them removes them; one
    that only sets sizes adds their number to `desired`, within bounds."""
    reason: Reason
    message: str
    """A sentence with the numbers that decided."""
    valid: bool = True
    """False: no data; `desired` repeats what is there."""
    facts: dict[str, float] = {}
    """Numbers behind it, by name with unit: rates, predicted attainment, seconds saved."""
