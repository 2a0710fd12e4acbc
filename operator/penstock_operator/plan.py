"""From what is to what is to be done, for one ModelService: a pure function from Observed to Plan.

Ordered steps, each owning one condition: spec (SpecValid), children (no condition: they are there or the plan fails), pools
(PoolsReady), rollout (Progressing), drain (Draining); Ready sums up. `reconcile` carries a plan out and asks again until nothing is
left to do. Doing any part of a plan and planning again leads to the same end.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from penstock_core.api import ModelServiceSpec
from penstock_core.api_parts import Pool
from pydantic import ValidationError

from penstock_operator import names, rollout
from penstock_operator.conditions import REGISTERED, SPEC_VALID, Verdict, stamp
from penstock_operator.config import OperatorConfig, OperatorSecrets
from penstock_operator.difference import differs, pod_differs
from penstock_operator.gangs import Gang, Pod, gather
from penstock_operator.kinds import (
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    POD,
    REVISION,
    SECRET,
    SERVICE,
    WORKER_POOL,
    ObjectKind,
)
from penstock_operator.observe import Observed
from penstock_operator.progress import Progress, judge
from penstock_operator.render import children
from penstock_operator.render.pod import PORT, Template, instantiate, render_template
from penstock_operator.status import (
    draining_verdict,
    pool_statuses,
    pools_verdict,
    ready_verdict,
    registered_verdict,
    said_before,
    scaling_verdict,
    service_status,
)

FAILED_POD_S = 10.0
"""A Pod that ended is kept this long before it is replaced: one that ends at once must not make a storm."""


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """One server-side apply. `body` names its object."""

    kind: ObjectKind
    body: dict[str, Any]
    why: str
    manager: str = names.FIELD_MANAGER


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """One delete by name, of this very object."""

    kind: ObjectKind
    name: str
    uid: str
    why: str


class DrainOrder(msgspec.Struct, frozen=True):
    """A worker that is to be drained, by the uid of its Pod."""

    uid: str
    url: str
    deadline: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do: writes, then removals, in this order; whom to ask or to drain; and the statuses when all of it is done."""

    writes: tuple[Write, ...] = ()
    removals: tuple[Removal, ...] = ()
    drains: tuple[DrainOrder, ...] = ()
    ask: tuple[tuple[str, str], ...] = ()
    """(uid, url) of leading Pods whose load must be known first."""
    status: dict[str, Any] | None = None
    pool_statuses: dict[str, dict[str, Any]] = {}
    """By the WorkerPool's name."""
    after_s: float | None = None
    """Look again then, whatever happens."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A pool of the spec with all that follows from it."""

    pool: Pool
    replicas: int
    template: Template
    pod_template: Mapping[str, Any]


def plan(observed: Observed, config: OperatorConfig, secrets: OperatorSecrets, now: float) -> Plan:
    """What to do now (epoch seconds)."""
    service = observed.service
    if service["metadata"].get("deletionTimestamp"):
        return Plan()  # the garbage collector takes the Pods, and each drains by its own SIGTERM
    try:
        spec = ModelServiceSpec.model_validate(service.get("spec") or {})
        wanted = _wanted(observed, spec, config, secrets)
    except (ValidationError, ValueError, TypeError, KeyError, AttributeError) as error:
        return _unusable(observed, str(error), now)
    writes = _children(observed, spec, wanted, config, secrets)
    return _pools(observed, spec, wanted, config, writes, now)


def _wanted(observed: Observed, spec: ModelServiceSpec, config: OperatorConfig, secrets: OperatorSecrets) -> dict[str, Wanted]:
    name = observed.service["metadata"]["name"]
    raw_pools = {raw["name"]: raw for raw in observed.service["spec"]["pools"]}
    found = {}
    for pool in spec.pools:
        pod_template = raw_pools[pool.name].get("podTemplate") or {}
        template = render_template(name, spec, pool, pod_template, config, secrets)
        found[pool.name] = Wanted(pool=pool, replicas=_replicas(observed, pool), template=template, pod_template=pod_template)
    return found


def _replicas(observed: Observed, pool: Pool) -> int:
    """The WorkerPool's own number; the spec's where there is no WorkerPool yet, or where the spec's was changed by hand."""
    live = observed.worker_pools.get(pool.name)
    if live is not None:
        applied = (live["metadata"].get("annotations") or {}).get(names.START_REPLICAS_ANNOTATION)
        changed = applied is not None and applied != str(pool.replicas) and pool.autoscaling is None
        return pool.replicas if changed else int(live["spec"].get("replicas", pool.replicas))
    before = next((row for row in (observed.service.get("status") or {}).get("pools") or () if row["name"] == pool.name), None)
    start = pool.replicas if before is None else int(before.get("desired", pool.replicas))
    bounds = pool.autoscaling
    return start if bounds is None else min(max(start, bounds.min_replicas), bounds.max_replicas)


def _unusable(observed: Observed, why: str, now: float) -> Plan:
    """The spec cannot be read: touch nothing, say so."""
    verdict = Verdict(SPEC_VALID, False, "Unreadable", f"{why}; correct the spec, what runs is left as it is")
    return Plan(status=service_status(observed, {}, [verdict], "", now))


def _children(
    observed: Observed, spec: ModelServiceSpec, wanted: Mapping[str, Wanted], config: OperatorConfig, secrets: OperatorSecrets
) -> list[Write]:
    """Everything but Pods, where it differs."""
    service = observed.service
    bodies: list[tuple[ObjectKind, dict[str, Any]]] = [
        (SERVICE, children.workers_service(service)),
        (NETWORK_POLICY, children.network_policy(service, config)),
        (REVISION, children.revision(service, {name: want.template for name, want in wanted.items()})),
    ]
    writes = []
    for pool in wanted.values():
        budget = children.disruption_budget(service, pool.pool, pool.template.size, pool.replicas)
        bodies.append((DISRUPTION_BUDGET, budget))
    token = children.secret(service, secrets)
    if differs(token, observed.secret):
        writes.append(Write(kind=SECRET, body=token, why="workers' Secret"))
    for name, pool in wanted.items():
        live = observed.worker_pools.get(name)
        body = children.worker_pool(service, spec, pool.pool, pool.pod_template, pool.replicas)
        if differs(body, live):
            if live is not None:  # another may be scaling it at this moment
                body["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
            writes.append(Write(kind=WORKER_POOL, body=body, why=f"pool {name}"))
    for kind, body in bodies:
        compared = {"metadata": body["metadata"]} if kind is REVISION else body  # its name and its hash say what is in it
        if differs(compared, observed.children.get((kind, body["metadata"]["name"]))):
            writes.append(Write(kind=kind, body=body, why=f"{kind.kind} {body['metadata']['name']}"))
    return writes


def _pools(
    observed: Observed, spec: ModelServiceSpec, wanted: Mapping[str, Wanted], config: OperatorConfig, writes: list[Write], now: float
) -> Plan:
    templates = _templates(observed, wanted)
    views = {name: _view(observed, name, want, templates) for name, want in wanted.items()}
    progress = judge(observed, spec.rollout, views, now)
    limits = rollout.Limits(spec.rollout.max_surge, spec.rollout.max_unavailable, halted=spec.rollout.paused or progress.exceeded)
    loads = {uid: None if report is None else rollout.Load(report.running, report.kv_tokens) for uid, report in observed.reports.items()}
    steps = rollout.steps(tuple(views.values()), limits, loads) if views else {}
    removals: list[Removal] = []
    drains: list[DrainOrder] = []
    due: list[float] = [progress.due] if progress.due else []
    ask = [gang for step in steps.values() for gang in step.ask]
    for name, view in views.items():
        pool_uid = observed.worker_pools.get(name, {}).get("metadata", {}).get("uid")
        if pool_uid is not None:
            writes += _added(observed, view, steps[name].add, templates, pool_uid)
            writes += _completed(observed, view, templates, pool_uid)
        for gang, reason in steps[name].retire:
            _leave(observed, gang, reason, now + spec.drain.deadline_seconds, writes, removals)
    removals += _removed_pools(observed, views, now + spec.drain.deadline_seconds, writes)
    for pod in (pod for pods in observed.pods.values() for pod in pods):
        _look_after(observed, pod, now, removals, drains, due)
    removals += _outdated_revisions(observed, views, wanted)
    verdict = _spec_verdict(observed)
    return Plan(
        writes=tuple(writes),
        removals=tuple({removal.uid: removal for removal in removals}.values()),
        drains=tuple(drains),
        ask=tuple((gang.leader.uid, worker_url(gang.leader)) for gang in ask if gang.leader is not None),
        status=service_status(observed, views, [verdict, *_verdicts(observed, spec, views, progress)], config.router_url, now),
        pool_statuses=pool_statuses(observed, {name: (want.pool, want.template) for name, want in wanted.items()}, views, now),
        after_s=max(0.0, min(due) - now) if due else None,
    )


def _templates(observed: Observed, wanted: Mapping[str, Wanted]) -> dict[tuple[str, str], Template]:
    """Every template that can still be made, by pool and hash."""
    found: dict[tuple[str, str], Template] = {}
    for (kind, _), raw in observed.children.items():
        if kind is REVISION:
            found |= children.read_revision(raw)
    return found | {(name, want.template.hash): want.template for name, want in wanted.items()}


def _view(observed: Observed, name: str, want: Wanted, templates: Mapping[tuple[str, str], Template]) -> rollout.PoolView:
    sizes = {template_hash: template.size for (pool, template_hash), template in templates.items() if pool == name}
    rows = (observed.service.get("status") or {}).get("pools") or ()
    before: Mapping[str, Any] = next((row for row in rows if row["name"] == name), {})
    stable = before.get("generation", "")
    return rollout.PoolView(
        name=name,
        desired=want.replicas,
        current=want.template.hash,
        stable=stable if stable in sizes else "",
        gangs=gather(observed.pods.get(name, ()), sizes),
    )


def _added(
    observed: Observed, view: rollout.PoolView, added: tuple[str, ...], templates: Mapping[tuple[str, str], Template], pool_uid: str
) -> list[Write]:
    taken = {raw["metadata"].get("labels", {}).get(names.REPLICA_LABEL, "") for raw in observed.raw_pods.values()}
    writes = []
    for replica, template_hash in rollout.free_ids(view, added, taken):
        template = templates[view.name, template_hash]
        writes += [_pod(observed, view.name, template, replica, rank, pool_uid, "new replica") for rank in range(template.size)]
    return writes


def _completed(observed: Observed, view: rollout.PoolView, templates: Mapping[tuple[str, str], Template], pool_uid: str) -> list[Write]:
    """Ranks that are missing in a gang that stays, and Pods that were edited by hand."""
    writes = []
    for gang in view.staying:
        template = templates.get((view.name, gang.template_hash))
        if template is None:
            continue
        writes += [_pod(observed, view.name, template, gang.replica, rank, pool_uid, "missing Pod") for rank in gang.missing_ranks]
        for pod in gang.pods:
            write = _pod(observed, view.name, template, gang.replica, pod.rank, pool_uid, "edited Pod")
            if not pod.failed and pod.name == write.body["metadata"]["name"] and pod_differs(write.body, observed.raw_pods[pod.name]):
                write.body["metadata"]["uid"] = pod.uid  # never a second one, should it have gone by now
                writes.append(write)
    return writes


def _pod(observed: Observed, pool: str, template: Template, replica: str, rank: int, pool_uid: str, why: str) -> Write:
    metadata = observed.service["metadata"]
    body = instantiate(
        template,
        namespace=metadata["namespace"],
        service=metadata["name"],
        pool=pool,
        replica=replica,
        rank=rank,
        pool_uid=pool_uid,
    )
    return Write(kind=POD, body=body, why=f"{why} of {pool}")


def _leave(observed: Observed, gang: Gang, reason: str, deadline: float, writes: list[Write], removals: list[Removal]) -> None:
    """Record the intent on the leading Pod; what never served leaves at once."""
    leader = gang.leader
    if leader is None or not leader.running or not leader.ip:
        removals += _gone(gang.pods, reason)
        return
    metadata = {
        "name": leader.name,
        "namespace": observed.service["metadata"]["namespace"],
        "uid": leader.uid,
        "annotations": {names.DRAIN_ANNOTATION: reason, names.DRAIN_DEADLINE_ANNOTATION: stamp(deadline)},
    }
    body = {"apiVersion": POD.api_version, "kind": POD.kind, "metadata": metadata}
    writes.append(Write(kind=POD, body=body, why=f"drain: {reason}", manager=names.DRAIN_MANAGER))


def _gone(pods: Iterable[Pod], why: str) -> list[Removal]:
    """Pods of one gang. The leading one last: it carries the drain, so what is left after an interruption is still seen to leave."""
    staying = [pod for pod in pods if not pod.terminating]
    return [Removal(kind=POD, name=pod.name, uid=pod.uid, why=why) for pod in sorted(staying, key=lambda pod: -pod.rank)]


def _look_after(observed: Observed, pod: Pod, now: float, removals: list[Removal], drains: list[DrainOrder], due: list[float]) -> None:
    """Pods that ended are taken away; draining ones are followed to their end. A gang leaves whole, whoever takes one of its Pods."""
    if pod.terminating:
        removals += _gone(_gang_of(observed, pod), "GangLeaves")
        return
    if pod.failed:
        if now >= pod.created + FAILED_POD_S:
            removals.append(Removal(kind=POD, name=pod.name, uid=pod.uid, why="Ended"))
        else:
            due.append(pod.created + FAILED_POD_S)
    elif pod.drain_reason:
        report = observed.reports.get(pod.uid)
        drained = report is not None and report.drained
        gone = not pod.running or (report is not None and report.unreachable and not pod.ready)
        if drained or gone or now >= pod.drain_deadline:
            why = "Drained" if drained else "NotServing" if gone else "DrainDeadline"
            removals += _gone(_gang_of(observed, pod), why)
        else:
            due.append(pod.drain_deadline)
            drains.append(DrainOrder(pod.uid, worker_url(pod), pod.drain_deadline))


def _gang_of(observed: Observed, pod: Pod) -> list[Pod]:
    return [mate for pods in observed.pods.values() if pod in pods for mate in pods if mate.replica == pod.replica]


def worker_url(pod: Pod) -> str:
    """Where a leading Pod answers."""
    return f"http://{f'[{pod.ip}]' if ':' in pod.ip else pod.ip}:{PORT}"


def _removed_pools(observed: Observed, views: Mapping[str, rollout.PoolView], deadline: float, writes: list[Write]) -> list[Removal]:
    """Pools that the spec no longer has: drained once those that it has serve, then deleted."""
    removals: list[Removal] = []
    for name, raw in observed.worker_pools.items():
        if name in views or raw["metadata"].get("deletionTimestamp"):
            continue
        gangs = gather(observed.pods.get(name, ()), {})
        if not gangs:
            metadata = raw["metadata"]
            removals.append(Removal(kind=WORKER_POOL, name=metadata["name"], uid=metadata["uid"], why="PoolRemoved"))
        elif rollout.proven(tuple(views.values())):
            for gang in gangs:
                if gang.stays:
                    _leave(observed, gang, "PoolRemoved", deadline, writes, removals)
    budgets = {names.pool_object(observed.service["metadata"]["name"], name) for name in (*views, *observed.worker_pools)}
    for (kind, name), raw in observed.children.items():
        if kind is DISRUPTION_BUDGET and name not in budgets:
            removals.append(Removal(kind=kind, name=name, uid=raw["metadata"]["uid"], why="PoolRemoved"))
    return removals


def _outdated_revisions(observed: Observed, views: Mapping[str, rollout.PoolView], wanted: Mapping[str, Wanted]) -> list[Removal]:
    """Revisions that no replica is of, that did not serve last and that are not wanted."""
    needed = {(name, gang.template_hash) for name, view in views.items() for gang in view.gangs}
    needed |= {(name, view.stable) for name, view in views.items()}
    current = children.revision(observed.service, {name: want.template for name, want in wanted.items()})["metadata"]["name"]
    removals = []
    for (kind, name), raw in observed.children.items():
        if kind is REVISION and name != current and not (children.read_revision(raw).keys() & needed - _current(views)):
            removals.append(Removal(kind=REVISION, name=name, uid=raw["metadata"]["uid"], why="NotNeeded"))
    return removals


def _current(views: Mapping[str, rollout.PoolView]) -> set[tuple[str, str]]:
    return {(name, view.current) for name, view in views.items()}


def _spec_verdict(observed: Observed) -> Verdict:
    if observed.refused:
        return Verdict(SPEC_VALID, False, "Refused", observed.refused)
    return Verdict(SPEC_VALID, True, "Accepted")


def _verdicts(observed: Observed, spec: ModelServiceSpec, views: Mapping[str, rollout.PoolView], progress: Progress) -> list[Verdict]:
    registered = registered_verdict(observed.registered) if observed.registered is not None else said_before(observed, REGISTERED)
    found = [
        pools_verdict(views),
        progress.verdict,
        draining_verdict(observed),
        registered,
        scaling_verdict(spec, views),
        ready_verdict(views, asleep=all(pool.autoscaling is not None and pool.autoscaling.min_replicas == 0 for pool in spec.pools)),
    ]
    return [verdict for verdict in found if verdict is not None]
