"""Replicas of a ModelService from their Pods and from the registry: since when they are asked for, since when ready, how loaded.

`kube_fleet` calls it with each look. A replica is known by its leading Pod, whose uid is the worker's id in the registry. Pods tell what
has been asked for and what serves, the registry how much each has to do. Pure.
"""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

import msgspec
from penstock_core.api_terms import DRAIN_ANNOTATION, POOL_LABEL
from penstock_core.endpoint import Load, Role

from penstock_autoscaler.kube_owners import seconds_of
from penstock_autoscaler.observation import Phase, Replica

Raw = Mapping[str, Any]

_MOST_STARTS = 32
"""Start-ups of a pool that its start_s is measured from: the latest."""


class PodFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What counts of a leading Pod; times are epoch seconds."""

    uid: str
    pool: str
    phase: Phase
    created_s: float
    ready_s: float | None
    restarted: bool
    """Its container has been started more than once: when it became ready says nothing about a start."""


def pod_facts(raw: Raw) -> PodFacts | None:
    """Of a leading Pod; None for one that has ended."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    if status.get("phase") in ("Failed", "Succeeded"):
        return None
    ready = next((one for one in status.get("conditions") or () if one.get("type") == "Ready" and one.get("status") == "True"), None)
    leaving = metadata.get("deletionTimestamp") or (metadata.get("annotations") or {}).get(DRAIN_ANNOTATION)
    return PodFacts(
        uid=metadata["uid"],
        pool=(metadata.get("labels") or {}).get(POOL_LABEL, ""),
        phase=Phase.DRAINING if leaving else Phase.READY if ready is not None else Phase.STARTING,
        created_s=seconds_of(metadata.get("creationTimestamp")),
        ready_s=seconds_of(ready.get("lastTransitionTime")) if ready is not None else None,
        restarted=any(one.get("restartCount") for one in status.get("containerStatuses") or ()),
    )


def replica_of(pod: PodFacts, role: Role, load: Load | None, ahead_s: float) -> Replica:
    """`ahead_s`: what must be added to epoch seconds for the clock of the Windows."""
    told = load or Load()
    return Replica(
        id=pod.uid,
        pool=pod.pool,
        role=role,
        phase=Phase.DRAINING if told.draining else pod.phase,
        asked_s=pod.created_s + ahead_s,
        ready_s=None if pod.ready_s is None else pod.ready_s + ahead_s,
        running=told.running,
        waiting=told.waiting,
        prefill_tokens=told.prefill_tokens,
        kv_used_tokens=told.kv_used_tokens,
        kv_tokens=told.kv_total_tokens,
    )


class Starts:
    """How long the replicas of one ModelService took from asked-for to ready. State: the latest start-ups of each pool, by Pod."""

    def __init__(self) -> None:
        self._took_s: dict[str, dict[str, float]] = {}

    def see(self, pods: Iterable[PodFacts]) -> None:
        """Note those that are ready; the first word about each stands, since a Pod may lose its readiness and find it again."""
        for pod in pods:
            if pod.ready_s is None or pod.restarted or pod.phase is not Phase.READY:
                continue
            took_s = self._took_s.setdefault(pod.pool, {})
            took_s.setdefault(pod.uid, max(0.0, pod.ready_s - pod.created_s))
            while len(took_s) > _MOST_STARTS:
                del took_s[next(iter(took_s))]

    def of(self, pool: str) -> float | None:
        """The median of those seen, in seconds; None: none was."""
        took_s = self._took_s.get(pool)
        return median(took_s.values()) if took_s else None
