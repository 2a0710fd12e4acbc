"""A decision as users of Kubernetes see it: two conditions of the ModelService, and an Event for what `kubectl describe` should show.

`kube_scope` writes what is made here, when it differs from what stands there. `ScalingDecided` says what was decided last and why,
`ScalingConflict` who else sizes a pool. Numbers change with every decision, so a message is written with a change of its reason or of
sizes only: a status that is written for nothing wakes everybody who watches it. Pure.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from penstock_autoscaler.decision import Decision, Reason
from penstock_autoscaler.kube_owners import Owner

Raw = Mapping[str, Any]

DECIDED, CONFLICT = "ScalingDecided", "ScalingConflict"
_MOST_MESSAGE = 4_096
_REASONS = {
    Reason.STEADY: "Steady",
    Reason.UP: "Up",
    Reason.DOWN: "Down",
    Reason.SWITCH: "Switch",
    Reason.WAITING: "Waiting",
    Reason.LIMITED: "Limited",
    Reason.NO_DATA: "NoData",
    Reason.PAUSED: "Paused",
    Reason.OVERRIDDEN: "Overridden",
}
_QUIET = frozenset({Reason.STEADY, Reason.WAITING})
"""A turn between these is no news."""


class Told(NamedTuple):
    """A decision, the sizes it found by pool, and the pools that somebody else sizes."""

    decision: Decision
    sizes: Mapping[str, int]
    owners: Mapping[str, Owner]


class Turn(NamedTuple):
    """An Event."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


def conditions(told: Told, before: Sequence[Raw], generation: int, now_s: float) -> list[dict[str, Any]] | None:
    """The two conditions to write; None where those that stand there say the same. `now_s`: epoch seconds."""
    there = {one.get("type"): one for one in before}
    decided, conflict = there.get(DECIDED, {}), there.get(CONFLICT, {})
    status, reason = str(told.decision.valid), _REASONS[told.decision.reason]
    fights = _conflict(told)
    same = (decided.get("status"), _plain(decided.get("reason"))) == (status, _plain(reason))
    if (
        same
        and _changes(told) == ""
        and (conflict.get("status"), conflict.get("reason")) == fights[:2]
        and conflict.get("message") == fights[2]
    ):
        return None
    message = f"{_changes(told)}{told.decision.message}"
    return [
        _condition(DECIDED, status, reason, message, decided, generation, now_s),
        _condition(CONFLICT, *fights, conflict, generation, now_s),
    ]


def turns(told: Told, before: Sequence[Raw]) -> list[Turn]:
    """What is worth an Event, the conditions having stood there as `before` says."""
    there = {one.get("type"): one for one in before}
    was, decision = there.get(DECIDED, {}).get("reason"), told.decision
    found = []
    changed = _changes(told)
    if changed:
        grown = sum(decision.desired.values()) > sum(told.sizes.values())
        found.append(Turn("Normal", "ScaledUp" if grown else "ScaledDown", changed + decision.message))
    if decision.reason in (Reason.LIMITED, Reason.NO_DATA) and was != _REASONS[decision.reason]:
        found.append(Turn("Warning", f"Scaling{_REASONS[decision.reason]}", decision.message))
    status, reason, message = _conflict(told)
    then = there.get(CONFLICT, {})
    if status == "True" and (then.get("status"), then.get("reason")) != (status, reason):
        found.append(Turn("Warning", CONFLICT, message))
    return found


def event(service: Raw, turn: Turn, component: str, number: str, now_s: float) -> dict[str, Any]:
    """The Event about a ModelService. `number` makes its name one of its own."""
    metadata, stamp = service["metadata"], _stamp(now_s)
    about = {key: metadata[key] for key in ("name", "namespace", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{number}", "namespace": metadata["namespace"]},
        "involvedObject": {"apiVersion": service["apiVersion"], "kind": "ModelService", **about},
        "type": turn.type,
        "reason": turn.reason,
        "message": turn.message[:1_000],
        "source": {"component": component},
        "reportingComponent": component,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }


def _plain(reason: object) -> object:
    return "Steady" if reason in {_REASONS[one] for one in _QUIET} else reason


def _changes(told: Told) -> str:
    """`decode 1 to 4: `, of the pools that the decision resizes; empty: none."""
    if not told.decision.valid:
        return ""
    wanted = told.decision.desired
    changed = [
        f"{pool} {size} to {wanted[pool]}"
        for pool, size in told.sizes.items()
        if pool in wanted and wanted[pool] != size and pool not in told.owners
    ]
    return ", ".join(changed) + ": " if changed else ""


def _conflict(told: Told) -> tuple[str, str, str]:
    """(status, reason, message) of the conflict condition; the reason is that of the first pool."""
    if not told.owners:
        return "False", "None", ""
    words = "; ".join(f"{pool}: {owner.words}" for pool, owner in told.owners.items())
    return "True", next(iter(told.owners.values())).reason, words


def _condition(type_: str, status: str, reason: str, message: str, before: Raw, generation: int, now_s: float) -> dict[str, Any]:
    since = before.get("lastTransitionTime") if before.get("status") == status else None
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message[:_MOST_MESSAGE],
        "lastTransitionTime": since or _stamp(now_s),
        "observedGeneration": generation,
    }


def _stamp(now_s: float) -> str:
    """RFC 3339, in UTC, to the second: the API's own form."""
    return datetime.fromtimestamp(int(now_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
