"""Who sizes a WorkerPool beside Penstock's autoscaler: an HPA or KEDA, a person within the bounds or beyond them.

`kube_fleet` asks before every decision; what is found is respected and told, never fought. Who set a size last is read from the
object's managed fields, which the API server keeps. No I/O, no clock.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from penstock_core.api_terms import OPERATOR_MANAGER

Raw = Mapping[str, Any]

HPA, BY_HAND, OUT_OF_BOUNDS = "HorizontalPodAutoscaler", "SetByHand", "OutOfBounds"
"""Reasons of the condition `ScalingConflict`."""
_KEDA = "app.kubernetes.io/managed-by"


class Owner(NamedTuple):
    """Who else, as a word for programs and a sentence for people."""

    reason: str
    words: str


def seconds_of(stamp: object) -> float:
    """Epoch seconds of an RFC 3339 time; 0 for anything else."""
    try:
        return datetime.fromisoformat(str(stamp).replace("Z", "+00:00")).timestamp() if stamp else 0.0
    except ValueError:
        return 0.0


def setter_of(pool: Raw, own: str) -> str:
    """Field manager of whoever else than the operator and `own` has asked for the WorkerPool's present size; empty: nobody.

    A write that changes a value takes the field from everybody else, so who asked for an earlier size is not found.
    """
    found = [
        str(entry.get("manager", ""))
        for entry in pool["metadata"].get("managedFields") or ()
        if "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    ]
    return next((manager for manager in reversed(found) if manager not in (own, OPERATOR_MANAGER)), "")


class Hands:
    """Since when each pool has the size that somebody gave it. State: that, by pool.

    The API server keeps no time for a write of `/scale` (1.34 leaves it out), so it counts from the first look that found the size. An
    autoscaler that has begun anew finds what the one before it saw in the condition that it wrote.
    """

    def __init__(self) -> None:
        self._since: dict[str, tuple[str, int, float]] = {}

    def since_s(self, pool: str, setter: str, size: int, told: Raw, now_s: float) -> float:
        """Epoch seconds. `told`: the condition ScalingConflict as it stands."""
        known = self._since.get(pool)
        if known is None or known[:2] != (setter, size):
            before = told.get("status") == "True" and f"{pool}: {_set_by(size, setter)}" in str(told.get("message"))
            known = (setter, size, (seconds_of(told.get("lastTransitionTime")) if before else 0.0) or now_s)
            self._since[pool] = known
        return known[2]

    def forget(self, pool: str) -> None:
        """Nobody has set it."""
        self._since.pop(pool, None)


def autoscaler_of(pool: Raw, hpas: Iterable[Raw]) -> Owner | None:
    """The HorizontalPodAutoscaler (KEDA's too, which makes one) that targets a WorkerPool."""
    metadata = pool["metadata"]
    for hpa in hpas:
        target = (hpa.get("spec") or {}).get("scaleTargetRef") or {}
        group = str(target.get("apiVersion", "")).partition("/")[0]
        here = hpa["metadata"].get("namespace") == metadata["namespace"]
        if here and (target.get("kind"), target.get("name"), group) == (
            "WorkerPool",
            metadata["name"],
            pool["apiVersion"].partition("/")[0],
        ):
            keda = (hpa["metadata"].get("labels") or {}).get(_KEDA) == "keda-operator"
            name = f"{metadata['namespace']}/{hpa['metadata']['name']}"
            return Owner(
                HPA, f"{'KEDA by the' if keda else 'the'} HorizontalPodAutoscaler {name} sizes it; delete that, or the pool's bounds"
            )
    return None


def owner_by_hand(setter: str, size: int, least: int, most: int, since_s: float, hold_s: float, now_s: float) -> Owner | None:
    """Whoever set this size, if it is still his; times are epoch seconds."""
    if not least <= size <= most:
        return Owner(OUT_OF_BOUNDS, f"{_set_by(size, setter)}, out of its bounds {least} to {most}; scale it to within them to go on")
    if now_s >= since_s + hold_s:
        return None
    until = datetime.fromtimestamp(since_s + hold_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Owner(BY_HAND, f"{_set_by(size, setter)}; it stays so until {until} (scaling.manualHoldSeconds)")


def _set_by(size: int, setter: str) -> str:
    return f"set to {size} by {setter}"
