"""`penstock doctor --cluster`: what is missing in a cluster, and what to do about each thing.

Each check gives one Finding, changes nothing, and where our own rights do not let it look it says so. What is right comes from the
operator's own tables: resource definitions, rights, labels.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penstock_core.api import KINDS
from penstock_core.api_terms import GROUP
from penstock_core.errors import PenstockError
from penstock_operator.crds import definition
from penstock_operator.difference import differs
from penstock_operator.gangs import read_pod
from penstock_operator.registration import compare
from penstock_operator.rights import LEASE_RULES, RULES

from penstock_cli.cluster import Cluster, ClusterError, Forbidden, NotThere, Raw
from penstock_cli.cluster_routers import ask_all, parts, routers
from penstock_cli.cluster_status import model_services, worker_pods
from penstock_cli.doctor import ADVICE, MISSING, OK, Finding

SUPPORTED_MINORS = (34, 36)
"""Of Kubernetes 1: the last three, lowest and highest. The tests run the highest."""

_MOST_NAMESPACES = 3
"""Of those with ModelServices: the operator's rights are looked at in so many."""

_USER_NEEDS: tuple[tuple[str, str, str, str], ...] = (
    ("list", GROUP, "modelservices", ""),
    ("create", GROUP, "modelservices", ""),
    ("patch", GROUP, "modelservices", ""),
    ("update", GROUP, "workerpools", "scale"),
    ("list", "", "pods", ""),
    ("get", "", "pods", "proxy"),
    ("get", "", "secrets", ""),
)
"""Verb, group, resource, subresource: what `kubectl apply`, `kubectl scale`, `penstock status` and `penstock explain` want."""


def examine(cluster: Cluster) -> list[Finding]:
    """All checks, each telling what stands in the way of the next; the rest is left out when the API server does not answer."""
    first = version(cluster)
    if first.state == MISSING and not first.found.startswith("1."):
        return [first]
    checks: list[tuple[str, Callable[[Cluster], Finding]]] = [
        *((f"definition of {kind.kind_facts.name}", lambda of, kind=kind: crd(of, kind)) for kind in KINDS),
        ("your rights", own_rights),
        ("operator", lambda of: running(of, "operator", "ModelServices are left as they are")),
        ("operator's rights", operator_rights),
        ("autoscaler", autoscaler),
        ("redis", redis),
        ("routers", routers_answer),
        ("workers", registered),
        ("model services", services_ready),
    ]
    return [first, *(_checked(name, check, cluster) for name, check in checks)]


def _checked(name: str, check: Callable[[Cluster], Finding], cluster: Cluster) -> Finding:
    try:
        return check(cluster)
    except Forbidden as error:
        return Finding(name=name, state=ADVICE, found="cannot be looked at", todo=f"ask somebody who may: {error}")
    except PenstockError as error:
        return Finding(name=name, state=MISSING, found="cannot be looked at", todo=str(error))


def version(cluster: Cluster) -> Finding:
    name = "api server"
    try:
        said = cluster.get("/version")
    except ClusterError as error:
        return Finding(name=name, state=MISSING, found="no answer", todo=str(error))
    minor = int("".join(letter for letter in said["minor"] if letter.isdecimal()) or 0)
    found = f"{said['gitVersion'].removeprefix('v')} at {cluster.server} (context {cluster.context})"
    low, high = SUPPORTED_MINORS
    if said["major"] != "1" or minor < low:
        return Finding(name=name, state=MISSING, found=found, todo=f"Kubernetes 1.{low} to 1.{high} is supported; upgrade the cluster")
    if minor > high:
        return Finding(name=name, state=ADVICE, found=found, todo=f"newer than what this version was tested with (1.{low} to 1.{high})")
    return Finding(name=name, state=OK, found=found)


def crd(cluster: Cluster, kind: Any) -> Finding:
    """There, established, and what this version of Penstock would write."""
    ours = definition(kind)
    name, title = ours["metadata"]["name"], f"definition of {kind.kind_facts.name}"
    apply = "kubectl apply --server-side -f manifests/crds, or upgrade the chart"
    try:
        live = cluster.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    except NotThere:
        return Finding(name=title, state=MISSING, found=f"no {name}", todo=apply)
    established = any(one["type"] == "Established" and one["status"] == "True" for one in live["status"].get("conditions") or ())
    if not established:
        return Finding(name=title, state=MISSING, found=f"{name} is not established", todo=f"kubectl describe crd {name}")
    if differs({"spec": ours["spec"]}, live) or _fields(live["spec"]["versions"]) != _fields(ours["spec"]["versions"]):
        todo = f"another version of Penstock wrote it: {apply}; or use the `penstock` of the cluster's version"
        return Finding(name=title, state=MISSING, found=f"{name} is not this version's", todo=todo)
    return Finding(name=title, state=OK, found=f"{name} as this version writes it")


def _fields(schema: Any, path: str = "") -> set[str]:
    """Paths of all fields below: one that this version does not write must not be there."""
    if isinstance(schema, list):
        return {inner for one in schema for inner in _fields(one, path)}
    if not isinstance(schema, dict):
        return set()
    found = {inner for key in ("schema", "openAPIV3Schema", "items") for inner in _fields(schema.get(key), path)}
    for name, one in (schema.get("properties") or {}).items():
        found |= {f"{path}.{name}"} | _fields(one, f"{path}.{name}")
    return found


def own_rights(cluster: Cluster) -> Finding:
    """What using Penstock takes, in the namespace named or in the context's own."""
    namespace = cluster.namespace or cluster.own_namespace
    lacking = []
    for verb, group, resource, subresource in _USER_NEEDS:
        attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource}
        if not cluster.may(attributes):
            lacking.append(f"{verb} {resource}{f'/{subresource}' if subresource else ''}")
    if lacking:
        todo = "without them parts of `kubectl apply`, `penstock status` and `penstock explain` are refused; ask for them"
        return Finding(name="your rights", state=ADVICE, found=f"in {namespace} you may not: {', '.join(lacking)}", todo=todo)
    return Finding(name="your rights", state=OK, found=f"all that is needed in {namespace}")


def running(cluster: Cluster, component: str, otherwise: str) -> Finding:
    """Pods of one part of Penstock, ready."""
    found = parts(cluster, component)
    ready = sum(read_pod(raw).ready for raw in found)
    if not found:
        return Finding(
            name=component, state=MISSING, found="no Pod", todo=f"{otherwise}; install the chart (or name its namespace with -n)"
        )
    where = found[0]["metadata"]["namespace"]
    if not ready:
        why = next((pod.trouble for raw in found if (pod := read_pod(raw)).trouble), "see its log")
        look = f"kubectl -n {where} describe pod {found[0]['metadata']['name']}"
        return Finding(name=component, state=MISSING, found=f"0 of {len(found)} Pods ready in {where}", todo=f"{why}; {look}")
    return Finding(name=component, state=OK, found=f"{ready} of {len(found)} Pods ready in {where}")


def autoscaler(cluster: Cluster) -> Finding:
    """It is needed where some pool has bounds only."""
    pools = [pool for raw in model_services(cluster) for pool in (raw.get("spec") or {}).get("pools") or () if pool.get("autoscaling")]
    if not pools and not parts(cluster, "autoscaler"):
        return Finding(name="autoscaler", state=OK, found="none, and no pool has autoscaling")
    return running(cluster, "autoscaler", f"{len(pools)} pools have autoscaling, and their sizes stay as they are")


def operator_rights(cluster: Cluster) -> Finding:
    """Each right of the operator's list, asked for its ServiceAccount where ModelServices are, and the Lease's where it runs."""
    name = "operator's rights"
    found = parts(cluster, "operator")
    if not found:
        return Finding(name=name, state=ADVICE, found="not known without an operator", todo="install the chart")
    home, account = _place(found[0]), found[0]["spec"].get("serviceAccountName", "default")
    user = f"system:serviceaccount:{home}:{account}"
    used = sorted({_place(raw) for raw in model_services(cluster)})[:_MOST_NAMESPACES]
    lacking = [one for namespace in used or [home] for one in _lacking(cluster, RULES, namespace, user)]
    lacking += _lacking(cluster, LEASE_RULES, home, user)
    where = ", ".join(used or [home])
    if not lacking:
        return Finding(name=name, state=OK, found=f"{user} has all it needs in {where}")
    todo = f"upgrade the chart, or bind the rules of its Role again (kubectl auth can-i --list --as={user})"
    if not used:
        todo = f"nothing is to be done if it looks after another namespace than {home}; else {todo}"
    return Finding(name=name, state=MISSING if used else ADVICE, found=f"{user} may not: {', '.join(lacking)}", todo=todo)


def _lacking(cluster: Cluster, rules: Sequence[Mapping[str, Any]], namespace: str, user: str) -> list[str]:
    """`verb resource in namespace` for what `user` may not."""
    found = []
    for rule in rules:
        resource, _, subresource = rule["resources"][0].partition("/")
        asked = {"group": rule["apiGroups"][0], "resource": resource, "subresource": subresource, "namespace": namespace}
        lacking = [verb for verb in rule["verbs"] if not cluster.may({**asked, "verb": verb}, user)]
        found += [f"{verb} {rule['resources'][0]} in {namespace}" for verb in lacking]
    return found


def redis(cluster: Cluster) -> Finding:
    """The chart's Redis, or what routers think of one of the user's own."""
    if parts(cluster, "redis"):
        return running(cluster, "redis", "routers keep what they know, new workers are not found")
    answers = ask_all(cluster, routers(cluster), "/admin/endpoints")
    models = [model for said in answers.said.values() for model in said["models"]]
    cold = sorted({model["model"] for model in models if not model["index_warm"]})
    if cold:
        todo = "routers could not read it whole: look at their logs and at PENSTOCK_REDIS_URL"
        return Finding(name="redis", state=ADVICE, found=f"your own; nothing read yet for {', '.join(cold)}", todo=todo)
    return Finding(name="redis", state=OK, found="your own; routers have read it" if models else "your own; no model in it yet")


def routers_answer(cluster: Cluster) -> Finding:
    """Every router is asked through the API server."""
    asked = routers(cluster)
    answers = ask_all(cluster, asked, "/admin/endpoints")
    unready = [router.name for router in asked if not router.ready]
    if answers.silent or unready:
        told = [f"{name}: {why}" for name, why in answers.silent.items()] + [f"{name} is not Ready" for name in unready]
        look = f"kubectl -n {asked[0].namespace} logs {[*answers.silent, *unready][0]}"
        return Finding(name="routers", state=ADVICE, found=f"{len(answers.said)} of {len(asked)} answer", todo=f"{'; '.join(told)}; {look}")
    return Finding(name="routers", state=OK, found=f"{len(asked)} answer in {asked[0].namespace}")


def registered(cluster: Cluster) -> Finding:
    """Workers that Kubernetes calls ready against those that routers can find, and the reverse."""
    pods = worker_pods(cluster)
    seen = {raw["metadata"]["uid"]: read_pod(raw) for raw in pods}
    leading = {
        uid: (f"{_place(raw)}/{pod.name}", pod.ready_since)
        for raw in pods
        if (pod := seen[uid := raw["metadata"]["uid"]]).rank == 0 and pod.ready and not pod.drain_reason
    }
    answers = ask_all(cluster, routers(cluster), "/admin/endpoints")
    found = {endpoint["id"] for said in answers.said.values() for model in said["models"] for endpoint in model["endpoints"]}
    findings = compare({("", ""): leading}, list(seen), found, time.time())
    missing = findings.missing["", ""]
    if missing:
        todo = f"no router can find: {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}; look at their logs and at Redis"
        return Finding(name="workers", state=MISSING, found=f"{len(missing)} of {len(leading)} ready workers not registered", todo=todo)
    if findings.strays:
        todo = f"their leases should run out within seconds; ids: {', '.join(findings.strays[:5])}"
        return Finding(name="workers", state=ADVICE, found=f"{len(findings.strays)} registered without a Pod we may see", todo=todo)
    if not leading:
        return Finding(name="workers", state=ADVICE, found="none is ready", todo="apply a ModelService: manifests/samples/sim-pd.yaml")
    return Finding(name="workers", state=OK, found=f"{len(leading)} ready and registered")


def services_ready(cluster: Cluster) -> Finding:
    """Every ModelService is Ready."""
    services = model_services(cluster)
    told = []
    for raw in services:
        conditions = (raw.get("status") or {}).get("conditions") or ()
        ready: Mapping[str, Any] = next((one for one in conditions if one["type"] == "Ready"), {})
        if ready.get("status") != "True":
            told.append(
                f"{_place(raw)}/{raw['metadata']['name']}: {ready.get('message') or ready.get('reason') or 'no operator has seen it'}"
            )
    if told:
        return Finding(name="model services", state=ADVICE, found=f"{len(told)} of {len(services)} not Ready", todo="; ".join(told[:5]))
    return Finding(name="model services", state=OK, found=f"{len(services)}, all Ready" if services else "none yet")


def _place(raw: Raw) -> str:
    return str(raw["metadata"]["namespace"])
