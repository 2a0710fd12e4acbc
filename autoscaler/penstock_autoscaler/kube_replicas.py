"""Replicas of a ModelService from their Pods and from the registry: since when they are asked for, since when ready, how loaded.

`kube_fleet` calls it with each look. A replica is known by its leading Pod, whose uid is the worker's id in the registry. Pods tell what
has been asked for and what serves, the registry how much each has to do. Pure.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from penstock_core.api_terms import DRAIN_ANNOTATION, POOL_LABEL
from penstock_core.endpoint import Load, Role, StartUp
from penstock_kvindex.index import Registered

from penstock_autoscaler.kube_owners import seconds_of
from penstock_autoscaler.observation import Phase, Replica, Start
from penstock_autoscaler.starts import start_of

Raw = Mapping[str, Any]


class PodFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What counts of a leading Pod; times are epoch seconds."""

    uid: str
    pool: str
    phase: Phase
    created_s: float
    ready_s: float | None
    scheduled_s: float | None
    """When a node was found for it."""
    running_s: float | None
    """When its container was started, the image being there."""
    restarted: bool
    """Its container has been started more than once: when it became ready says nothing about a start."""


def pod_facts(raw: Raw) -> PodFacts | None:
    """Of a leading Pod; None for one that has ended."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    if status.get("phase") in ("Failed", "Succeeded"):
        return None
    true_s = {
        str(one.get("type")): seconds_of(one.get("lastTransitionTime"))
        for one in status.get("conditions") or ()
        if one.get("status") == "True"
    }
    containers = status.get("containerStatuses") or ()
    running_s = [seconds_of(((one.get("state") or {}).get("running") or {}).get("startedAt")) for one in containers]
    leaving = metadata.get("deletionTimestamp") or (metadata.get("annotations") or {}).get(DRAIN_ANNOTATION)
    return PodFacts(
        uid=metadata["uid"],
        pool=(metadata.get("labels") or {}).get(POOL_LABEL, ""),
        phase=Phase.DRAINING if leaving else Phase.READY if "Ready" in true_s else Phase.STARTING,
        created_s=seconds_of(metadata.get("creationTimestamp")),
        ready_s=true_s.get("Ready"),
        scheduled_s=true_s.get("PodScheduled"),
        running_s=max(filter(None, running_s), default=None),
        restarted=any(one.get("restartCount") for one in containers),
    )


def replica_of(pod: PodFacts, role: Role, row: Registered | None, ahead_s: float) -> Replica:
    """`row`: what the registry has of it; `ahead_s`: what must be added to epoch seconds for the clock of the Windows."""
    told = (row.load if row is not None else None) or Load()
    return Replica(
        id=pod.uid,
        pool=pod.pool,
        role=role,
        phase=Phase.DRAINING if told.draining else pod.phase,
        asked_s=pod.created_s + ahead_s,
        ready_s=None if pod.ready_s is None else pod.ready_s + ahead_s,
        start=_start(pod, row.record.start_up if row is not None else None),
        running=told.running,
        waiting=told.waiting,
        prefill_tokens=told.prefill_tokens,
        kv_used_tokens=told.kv_used_tokens,
        kv_tokens=told.kv_total_tokens,
    )


def _start(pod: PodFacts, own: StartUp | None) -> Start | None:
    """The API server says when it was asked for, scheduled, run and ready, to the second; the worker what it did meanwhile. Where one of
    the first is not said, neither phase is made up: they are in the rest."""
    if pod.ready_s is None or pod.restarted or pod.phase is not Phase.READY:
        return None
    total_s = pod.ready_s - pod.created_s
    if pod.scheduled_s is None or pod.running_s is None:
        return start_of(pod.uid, total_s, own=own)
    return start_of(pod.uid, total_s, schedule_s=pod.scheduled_s - pod.created_s, pull_s=pod.running_s - pod.scheduled_s, own=own)
