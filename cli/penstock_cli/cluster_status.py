"""`penstock status` and `penstock explain` in a cluster: what the ModelServices say of themselves and what the routers know.

`main` prints what comes from here with the tables of the local commands. Workers carry the uid of their Pod as id; people are
shown the Pod's name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from penstock_core.api_terms import GROUP, VERSION
from rich.box import SIMPLE_HEAD
from rich.table import Table

from penstock_cli.cluster import Cluster, ClusterError, NotThere, Raw
from penstock_cli.cluster_routers import CORE, USUAL_NAMESPACE, RouterPod, ask_all, routers
from penstock_cli.explain import detail, overview, profiles
from penstock_cli.status import endpoints_table, models_line

OURS = f"/apis/{GROUP}/{VERSION}"
WORKERS = "app.kubernetes.io/managed-by=penstock-operator"


def status(cluster: Cluster) -> tuple[Raw, list[Any]]:
    """What there is, for scripts, and the same as tables and lines. Raises ClusterError, NoRouters."""
    services = model_services(cluster)
    asked = routers(cluster)
    answers = ask_all(cluster, asked, "/admin/endpoints")
    names = pod_names(cluster)
    most = max(answers.said.values(), key=lambda one: sum(len(model["endpoints"]) for model in one["models"]))
    models = most["models"]
    for model in models:
        for endpoint in model["endpoints"]:
            endpoint["pod"] = names.get(endpoint["id"])
    found = {
        "context": cluster.context,
        "server": cluster.server,
        "model_services": [{"namespace": _of(raw, "namespace"), "name": _of(raw, "name"), **raw.get("status", {})} for raw in services],
        "routers": {name: _counts(said) for name, said in answers.said.items()},
        "silent_routers": dict(answers.silent),
        "models": models,
    }
    lines = [
        f"Router {name} sees other endpoints: {_words(said)}." for name, said in answers.said.items() if _counts(said) != _counts(most)
    ]
    lines += [f"Router {name} does not answer: {why}" for name, why in answers.silent.items()]
    head = f"Context {cluster.context} ({cluster.server}), {len(asked)} routers in namespace {asked[0].namespace}"
    return found, [head, services_table(services), *scaling_lines(services), endpoints_table(models), models_line(models), *lines]


def explain(cluster: Cluster, request_id: str | None, last: int) -> tuple[Raw, list[Any]]:
    """The last decisions of all routers, newest first, or those of one request. Raises as `status`, and where there is none."""
    query: dict[str, str | int] = {"limit": last} if request_id is None else {"limit": last, "request_id": request_id}
    asked = routers(cluster)
    answers = ask_all(cluster, asked, "/admin/decisions", query)
    decisions = [{"router": name, **decision} for name, said in answers.said.items() for decision in said["decisions"]]
    decisions = sorted(decisions, key=lambda decision: float(decision["age_s"]))[:last]
    if request_id is not None and not decisions:
        those = ", ".join(answers.said)
        raise ClusterError(f"request_id is {request_id!r}; routers keep their last decisions only, and those of {those} have it not")
    names = pod_names(cluster)
    shown = [_named(decision, names) for decision in decisions]
    details = [detail(decision) for decision in shown] if request_id is not None else []
    found: Raw = {"decisions": decisions, "pods": names, "silent_routers": dict(answers.silent)}
    if request_id is not None:
        found["profiles"] = _profiles(cluster, asked, decisions)
        details += [profiles(one["profiles"], one["router"]) for one in found["profiles"] if one["profiles"]]
    lines = [f"Router {name} does not answer: {why}" for name, why in answers.silent.items()]
    return found, [overview(shown), *details, *lines]


def _profiles(cluster: Cluster, asked: Sequence[RouterPod], decisions: Sequence[Raw]) -> list[Raw]:
    """What the routers that decided predict with by now, one entry a router and model; without a router that no longer answers."""
    wanted = {(decision["router"], decision["model"]) for decision in decisions}
    names = {router for router, _ in wanted}
    said = ask_all(cluster, [pod for pod in asked if pod.name in names], "/admin/learned").said
    return [
        {"router": name, "model": one["model"], "profiles": one["profiles"]}
        for name, learned in said.items()
        for one in learned["models"]
        if (name, one["model"]) in wanted
    ]


def model_services(cluster: Cluster) -> list[Raw]:
    """Every ModelService that we may list. Raises ClusterError, with a word about the chart where the kind is not known."""
    try:
        return cluster.every_seen(OURS, "modelservices", [cluster.own_namespace, cluster.namespace or USUAL_NAMESPACE])
    except NotThere as error:
        raise NotThere(f"{error}; the resource definitions are not there: install the chart, or apply manifests/crds") from None


def worker_pods(cluster: Cluster) -> list[Raw]:
    """The Pods that the operator made. Raises ClusterError."""
    return cluster.every_seen(CORE, "pods", [cluster.own_namespace, cluster.namespace or USUAL_NAMESPACE], WORKERS)


def pod_names(cluster: Cluster) -> dict[str, str]:
    """Names of worker Pods by uid; none where we may not list them."""
    try:
        return {_of(raw, "uid"): _of(raw, "name") for raw in worker_pods(cluster)}
    except ClusterError:
        return {}


def services_table(services: Sequence[Mapping[str, Any]]) -> Table:
    """One row a ModelService."""
    table = Table(title=f"{len(services)} ModelServices", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("namespace", "name", "ready", "prefill", "decode", "why"):
        table.add_column(heading, overflow="fold")
    for raw in services:
        said = raw.get("status") or {}
        conditions = {one["type"]: one for one in said.get("conditions") or ()}
        ready = conditions.get("Ready", {})
        telling = next((one for one in conditions.values() if _bad(one)), ready)
        why = f"{telling.get('reason', '')}: {telling.get('message', '')}" if telling.get("message") else telling.get("reason", "")
        counts = (said.get("prefill", "–"), said.get("decode", "–"))
        table.add_row(_of(raw, "namespace"), _of(raw, "name"), ready.get("status", "Unknown"), *counts, why)
    return table


def scaling_lines(services: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the autoscaler has decided last of each ModelService, and who else sizes its pools; nothing where it has said nothing."""
    found = []
    for raw in services:
        conditions = {one["type"]: one for one in (raw.get("status") or {}).get("conditions") or ()}
        decided, conflict = conditions.get("ScalingDecided"), conditions.get("ScalingConflict", {})
        if decided is not None:
            name = f"{_of(raw, 'namespace')}/{_of(raw, 'name')}"
            found.append(f"Scaling of {name}: {decided.get('reason')}, {decided.get('message')}")
            if conflict.get("status") == "True":
                found.append(f"Scaling of {name}: left alone, {conflict.get('message')}")
    return found


def _bad(condition: Mapping[str, Any]) -> bool:
    """A condition that explains why something is not as it should be."""
    return condition["status"] == "False" and condition["type"] in ("SpecValid", "Ready", "PoolsReady", "Registered")


def _named(decision: Raw, names: Mapping[str, str]) -> Raw:
    placement = decision.get("placement")
    if not placement:
        return decision

    def named(one: Mapping[str, Any]) -> Raw:
        return {**one, **{role: names.get(one.get(role) or "", one.get(role)) for role in ("prefill", "decode")}}

    return {**decision, "placement": {**named(placement), "candidates": [named(one) for one in placement.get("candidates") or ()]}}


def _counts(said: Mapping[str, Any]) -> dict[str, int]:
    return {model["model"]: len(model["endpoints"]) for model in said["models"]}


def _words(said: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} of {model}" for model, count in _counts(said).items()) or "no model"


def _of(raw: Mapping[str, Any], field: str) -> str:
    return str(raw["metadata"].get(field, ""))
