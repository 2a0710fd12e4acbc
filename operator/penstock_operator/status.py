"""The status of a ModelService and of its WorkerPools, as they are written: no counters, no times but the conditions' own.

`plan` builds them last, from what it saw. Pure: the same observation gives the same bytes, so an unchanged state writes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from penstock_core.api import ModelServiceSpec
from penstock_core.api_parts import Pool
from penstock_core.api_terms import PoolRole

from penstock_operator import names
from penstock_operator.conditions import DRAINING, POOLS_READY, READY, REGISTERED, SCALING_ACTIVE, Verdict, find, written
from penstock_operator.gangs import gather
from penstock_operator.observe import Observed, Registered
from penstock_operator.render.pod import Template
from penstock_operator.rollout import PoolView


def service_status(
    observed: Observed, views: Mapping[str, PoolView], verdicts: Sequence[Verdict], endpoint: str, now: float
) -> dict[str, Any]:
    """`status` of the ModelService. Without `views` (the spec cannot be read) what stands there about pools is kept."""
    service, before = observed.service, observed.service.get("status") or {}
    generation = service["metadata"].get("generation", 0)
    kept = {condition["type"] for condition in before.get("conditions") or ()} - {verdict.type for verdict in verdicts}
    conditions = written(verdicts, before.get("conditions") or (), generation, now)
    if not views:
        conditions += [condition for condition in before.get("conditions") or () if condition["type"] in kept]
        return {**before, "observedGeneration": generation, "conditions": conditions}
    roles = {pool["name"]: PoolRole(pool["role"]) for pool in service["spec"]["pools"]}
    last = {row["name"]: row.get("generation", "") for row in before.get("pools") or ()}
    return {
        "observedGeneration": generation,
        "conditions": conditions,
        "endpoint": endpoint,
        "prefill": _sum(views, [name for name, role in roles.items() if role is not PoolRole.DECODE]),
        "decode": _sum(views, [name for name, role in roles.items() if role is not PoolRole.PREFILL]),
        "pools": [
            {
                "name": name,
                "role": roles[name].value,
                "desired": view.desired,
                "ready": view.serving,
                "draining": sum(gang.draining and not gang.terminating for gang in view.gangs),
                "generation": view.current if _complete(view) else last.get(name, ""),
            }
            for name, view in views.items()
        ],
    }


def pool_statuses(
    observed: Observed, wanted: Mapping[str, tuple[Pool, Template]], views: Mapping[str, PoolView], now: float
) -> dict[str, dict[str, Any]]:
    """`status` of each WorkerPool that is there, by its name."""
    service = observed.service["metadata"]["name"]
    found = {}
    for name, view in views.items():
        live = observed.worker_pools.get(name)
        if live is None:
            continue
        template = wanted[name][1]
        before = live.get("status") or {}
        generation = live["metadata"].get("generation", 0)
        selector = {names.SERVICE_LABEL: service, names.POOL_LABEL: name, names.RANK_LABEL: "0"}
        found[live["metadata"]["name"]] = {
            "observedGeneration": generation,
            "conditions": written([ready_verdict({name: view})], before.get("conditions") or (), generation, now),
            "replicas": len(view.staying),
            "ready": view.serving,
            "updated": sum(gang.ready for gang in view.new),
            "draining": sum(gang.draining and not gang.terminating for gang in view.gangs),
            "generation": template.hash,
            "kvGeneration": template.kv_generation,
            "selector": ",".join(f"{label}={value}" for label, value in selector.items()),
        }
    return found


def pools_verdict(views: Mapping[str, PoolView]) -> Verdict:
    """Whether every pool has as many serving replicas as are wanted."""
    short = {name: view for name, view in views.items() if view.serving < view.desired}
    if not short:
        return Verdict(POOLS_READY, True, "AllReady")
    counts = ", ".join(f"{name} {view.serving}/{view.desired}" for name, view in short.items())
    trouble = next((pod.trouble for view in short.values() for gang in view.gangs for pod in gang.pods if pod.trouble), "")
    return Verdict(POOLS_READY, False, "ReplicasMissing", f"{counts} ready. {trouble}".strip())


def draining_verdict(observed: Observed) -> Verdict:
    """Whether any replica finishes its answers."""
    leaving = {
        name: sum(gang.draining and not gang.terminating for gang in gather(pods, {})) for name, pods in sorted(observed.pods.items())
    }
    counts = ", ".join(f"{name} {count}" for name, count in leaving.items() if count)
    return Verdict(DRAINING, bool(counts), "ReplicasLeaving" if counts else "None", counts)


def registered_verdict(registered: Registered) -> Verdict:
    """Whether routers can find every ready replica; what they find beyond is told, and may be right (workers of another place)."""
    strays = f"registered without a Pod here: {_some(registered.strays)}" if registered.strays else ""
    if not registered.missing:
        return Verdict(REGISTERED, True, "AllRegistered", strays)
    lost = f"ready, but no router can find: {_some(registered.missing)}; look at the Pods' logs and at Redis"
    return Verdict(REGISTERED, False, "NotInRegistry", f"{lost}. {strays}".removesuffix(". "))


def _some(names_: Sequence[str]) -> str:
    return ", ".join(names_[:5]) + (" and others" if len(names_) > 5 else "")


def scaling_verdict(spec: ModelServiceSpec, views: Mapping[str, PoolView]) -> Verdict:
    """Whether the autoscaler may size the pools that name it. A size out of bounds is somebody's own: it lets go of these."""
    bounds = {pool.name: pool.autoscaling for pool in spec.pools if pool.autoscaling is not None}
    if not bounds:
        return Verdict(SCALING_ACTIVE, False, "NotConfigured", "no pool has autoscaling: sizes change by hand only")
    if spec.scaling.paused:
        return Verdict(SCALING_ACTIVE, False, "Paused", "scaling.paused is true: sizes stay as they are until it is false again")
    sizes = {name: views[name].desired for name in bounds}
    off = [name for name, size in sizes.items() if size == 0 and bounds[name].min_replicas > 0]
    if off:
        return Verdict(SCALING_ACTIVE, False, "ScaledToZero", f"{', '.join(off)}: scaled to 0 by hand; scale to 1 or more to go on")
    shown = ", ".join(f"{name} {sizes[name]} of {bound.min_replicas} to {bound.max_replicas}" for name, bound in bounds.items())
    outside = any(not bound.min_replicas <= sizes[name] <= bound.max_replicas for name, bound in bounds.items())
    return Verdict(SCALING_ACTIVE, not outside, "OutOfBounds" if outside else "WithinBounds", shown)


def said_before(observed: Observed, type_: str) -> Verdict | None:
    """The verdict that stands in the status: an operator that has not looked yet takes nothing back. None: there is none."""
    condition = find((observed.service.get("status") or {}).get("conditions") or (), type_)
    holds = {"True": True, "False": False}.get(condition.get("status", ""))
    return Verdict(type_, holds, condition.get("reason", ""), condition.get("message", "")) if condition else None


def ready_verdict(views: Mapping[str, PoolView], *, asleep: bool = False) -> Verdict:
    """Whether every pool of which something is wanted serves. `asleep`: with none wanted a request makes the autoscaler start one."""
    silent = [name for name, view in views.items() if view.desired > 0 and view.serving == 0]
    if silent:
        return Verdict(READY, False, "PoolNotServing", f"no replica serves in: {', '.join(silent)}")
    if asleep and not any(view.desired for view in views.values()):
        return Verdict(READY, True, "Asleep", "scaled to 0, as the bounds allow: the autoscaler starts a replica when a request comes")
    if not any(view.desired for view in views.values()):
        return Verdict(READY, False, "ScaledToZero", "every pool is scaled to 0")
    return Verdict(READY, True, "Serving")


def _complete(view: PoolView) -> bool:
    """All that serve are of the newest generation, and as many as are wanted."""
    return not view.old and sum(gang.ready for gang in view.new) >= view.desired


def _sum(views: Mapping[str, PoolView], pools: Sequence[str]) -> str:
    return f"{sum(views[name].serving for name in pools)}/{sum(views[name].desired for name in pools)}"
