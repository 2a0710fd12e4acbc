"""The conditions of a ModelService and a WorkerPool: who says what, and when it last changed.

Each of `plan`'s steps gives a Verdict for the one condition it owns; `written` turns verdicts into the list that stands in the
status. `lastTransitionTime` moves only with `status`. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

READY, SPEC_VALID, POOLS_READY, PROGRESSING, DRAINING = "Ready", "SpecValid", "PoolsReady", "Progressing", "Draining"
REGISTERED, SCALING_ACTIVE = "Registered", "ScalingActive"
_MOST_MESSAGE = 4_096


class Verdict(msgspec.Struct, frozen=True):
    """What one step found: `holds` None is Unknown."""

    type: str
    holds: bool | None
    reason: str
    message: str = ""

    @property
    def status(self) -> str:
        return "Unknown" if self.holds is None else str(self.holds)


def stamp(now: float) -> str:
    """RFC 3339, in UTC, to the second: the API's own form."""
    return datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def written(verdicts: Iterable[Verdict], before: Sequence[Mapping[str, Any]], generation: int, now: float) -> list[dict[str, Any]]:
    """The conditions to write, `before` being those that stand there."""
    known = {condition["type"]: condition for condition in before if "type" in condition}
    conditions = []
    for verdict in verdicts:
        last = known.get(verdict.type)
        same = last is not None and last.get("status") == verdict.status
        conditions.append(
            {
                "type": verdict.type,
                "status": verdict.status,
                "reason": verdict.reason,
                "message": verdict.message[:_MOST_MESSAGE],
                "lastTransitionTime": last["lastTransitionTime"] if same and last and last.get("lastTransitionTime") else stamp(now),
                "observedGeneration": generation,
            }
        )
    return conditions


def find(conditions: Sequence[Mapping[str, Any]], type_: str) -> Mapping[str, Any]:
    """The condition of that type; empty if there is none."""
    return next((condition for condition in conditions if condition.get("type") == type_), {})
