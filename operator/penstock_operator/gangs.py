"""A replica as the planner sees it: a gang of 1 to k Pods, read from the Pods' metadata and status alone.

`observe` builds gangs from cached Pods; `rollout` and `plan` decide with them. Frozen values, no I/O.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from penstock_operator import names


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """One worker Pod. Times are epoch seconds."""

    name: str
    uid: str
    replica: str
    rank: int
    template_hash: str
    ip: str = ""
    created: float = 0.0
    ready: bool = False
    ready_since: float = 0.0
    """When Ready last became true; 0: it is not."""
    running: bool = False
    """Its worker container runs."""
    failed: bool = False
    """It ended and will not start again."""
    terminating: bool = False
    drain_reason: str = ""
    """Why it leaves; empty: it stays."""
    drain_deadline: float = 0.0
    trouble: str = ""
    """What keeps it from running, in the cluster's words: `ImagePullBackOff: …`."""


class Gang(msgspec.Struct, frozen=True, kw_only=True):
    """One replica: its Pods by rank. `size` is how many it should have."""

    replica: str
    template_hash: str
    size: int
    pods: tuple[Pod, ...]

    @property
    def leader(self) -> Pod | None:
        """The Pod that answers HTTP."""
        return self.pods[0] if self.pods and self.pods[0].rank == 0 else None

    @property
    def terminating(self) -> bool:
        return any(pod.terminating for pod in self.pods)

    @property
    def draining(self) -> bool:
        return any(pod.drain_reason for pod in self.pods)

    @property
    def stays(self) -> bool:
        """Neither leaving nor told to leave."""
        return not self.terminating and not self.draining

    @property
    def ready(self) -> bool:
        """Every rank is there and ready: it serves."""
        return self.stays and len(self.pods) >= self.size and all(pod.ready for pod in self.pods)

    @property
    def ready_since(self) -> float:
        """When the last of its Pods became ready; 0: not ready."""
        return max(pod.ready_since for pod in self.pods) if self.ready else 0.0

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        there = {pod.rank for pod in self.pods}
        return tuple(rank for rank in range(self.size) if rank not in there)


def seconds_of(stamp: str | None) -> float:
    """Epoch seconds of an RFC 3339 time; 0 for None or anything else."""
    try:
        return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp() if stamp else 0.0
    except ValueError:
        return 0.0


def read_pod(raw: Mapping[str, Any]) -> Pod:
    """A Pod from its object; unusual values count as absent."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    labels, notes = metadata.get("labels") or {}, metadata.get("annotations") or {}
    rank = labels.get(names.RANK_LABEL, "")
    ready: Mapping[str, Any] = next((c for c in status.get("conditions") or () if c.get("type") == "Ready"), {})
    containers = status.get("containerStatuses") or ()
    phase = status.get("phase", "")
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        replica=labels.get(names.REPLICA_LABEL, ""),
        rank=int(rank) if rank.isdecimal() else 0,
        template_hash=labels.get(names.TEMPLATE_HASH_LABEL, ""),
        ip=status.get("podIP") or "",
        created=seconds_of(metadata.get("creationTimestamp")),
        ready=ready.get("status") == "True",
        ready_since=seconds_of(ready.get("lastTransitionTime")) if ready.get("status") == "True" else 0.0,
        running=phase == "Running" and any("running" in (c.get("state") or {}) for c in containers),
        failed=phase in ("Failed", "Succeeded"),
        terminating=bool(metadata.get("deletionTimestamp")),
        drain_reason=notes.get(names.DRAIN_ANNOTATION, ""),
        drain_deadline=seconds_of(notes.get(names.DRAIN_DEADLINE_ANNOTATION)),
        trouble=_trouble(status, containers),
    )


def gather(pods: Iterable[Pod], sizes: Mapping[str, int]) -> tuple[Gang, ...]:
    """Gangs of one pool, in the order of their ids. `sizes`: Pods in a replica, by template hash; of unknown ones, as many as there are."""
    members: dict[tuple[str, str], list[Pod]] = {}
    for pod in pods:
        members.setdefault((pod.replica, pod.template_hash), []).append(pod)
    gangs = []
    for (replica, template_hash), gang in sorted(members.items()):
        ranked = tuple(sorted(gang, key=lambda pod: pod.rank))
        gangs.append(Gang(replica=replica, template_hash=template_hash, size=sizes.get(template_hash, len(ranked)), pods=ranked))
    return tuple(gangs)


def _trouble(status: Mapping[str, Any], containers: Iterable[Mapping[str, Any]]) -> str:
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return _words(waiting)
    scheduled: Mapping[str, Any] = next((c for c in status.get("conditions") or () if c.get("type") == "PodScheduled"), {})
    return _words(scheduled) if scheduled.get("status") == "False" else ""


def _words(said: Mapping[str, Any]) -> str:
    message = str(said.get("message") or "").strip()
    return f"{said.get('reason', '')}: {message}" if message else str(said.get("reason", ""))
