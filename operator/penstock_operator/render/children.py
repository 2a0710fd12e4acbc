"""What a ModelService has beside its worker Pods: WorkerPools, Service, NetworkPolicy, Secret, disruption budgets, revision.

`plan` compares these with what is there and has the differences applied. Each carries a hash of itself, so that a field which
is no longer wanted is told from one that somebody else has added.
"""

import base64
from collections.abc import Mapping
from typing import Any

import msgspec
from penstock_core.api import ModelServiceSpec
from penstock_core.api_parts import Pool

from penstock_operator import names
from penstock_operator.config import OperatorConfig, OperatorSecrets
from penstock_operator.kinds import DISRUPTION_BUDGET, MODEL_SERVICE, NETWORK_POLICY, REVISION, SECRET, SERVICE, WORKER_POOL, ObjectKind
from penstock_operator.render.pod import PORT, Template, owner, pool_labels, service_labels
from penstock_operator.render.secret import secret_values

_HANDED_DOWN = ("model", "engine", "slo", "transfer", "rollout", "drain")
"""Fields that a WorkerPool has from its ModelService."""


def worker_pool(
    service: Mapping[str, Any], spec: ModelServiceSpec, pool: Pool, pod_template: Mapping[str, Any], replicas: int
) -> dict[str, Any]:
    """The WorkerPool of one pool. `replicas` is not part of the hash: others own it."""
    name = service["metadata"]["name"]
    dumped = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    sized = pool.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"name", "replicas", "pod_template"})
    fields = {field: dumped[field] for field in _HANDED_DOWN} | sized
    fields |= {"modelService": name, "pool": pool.name, "podTemplate": pod_template}
    body = _child(service, WORKER_POOL, names.pool_object(name, pool.name), pool_labels(name, pool), {"spec": fields})
    body["metadata"]["annotations"][names.START_REPLICAS_ANNOTATION] = str(pool.replicas)
    body["spec"]["replicas"] = replicas
    return body


def workers_service(service: Mapping[str, Any]) -> dict[str, Any]:
    """The headless Service that gives the Pods of a gang their names, and scrapers a list of all workers."""
    name = service["metadata"]["name"]
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {names.SERVICE_LABEL: name},
        "ports": [{"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"}],
    }
    return _child(service, SERVICE, names.workers_object(name), service_labels(name), {"spec": spec})


def network_policy(service: Mapping[str, Any], config: OperatorConfig) -> dict[str, Any]:
    """Who may call workers: those of the same ModelService (KV, gangs), and Penstock's own processes on the HTTP port."""
    name = service["metadata"]["name"]
    penstock = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": config.namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "penstock"}},
    }
    spec = {
        "podSelector": {"matchLabels": {names.SERVICE_LABEL: name}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": {names.SERVICE_LABEL: name}}}]},
            {"from": [penstock], "ports": [{"port": PORT, "protocol": "TCP"}]},
        ],
    }
    return _child(service, NETWORK_POLICY, names.workers_object(name), service_labels(name), {"spec": spec})


def disruption_budget(service: Mapping[str, Any], pool: Pool, size: int, desired: int) -> dict[str, Any]:
    """One replica of a pool may be evicted at a time. Of one-Pod replicas it needs no rewriting when the pool is scaled."""
    name = service["metadata"]["name"]
    allowed = {"maxUnavailable": 1} if size == 1 else {"minAvailable": max(0, desired - 1) * size}
    selector = {"matchLabels": {names.SERVICE_LABEL: name, names.POOL_LABEL: pool.name}}
    spec = {**allowed, "unhealthyPodEvictionPolicy": "AlwaysAllow", "selector": selector}
    return _child(service, DISRUPTION_BUDGET, names.pool_object(name, pool.name), pool_labels(name, pool), {"spec": spec})


def secret(service: Mapping[str, Any], secrets: OperatorSecrets) -> dict[str, Any]:
    """What workers must know."""
    metadata = service["metadata"]
    data = {key: base64.b64encode(value.encode()).decode() for key, value in secret_values(metadata["uid"], secrets).items()}
    name = metadata["name"]
    return _child(service, SECRET, names.workers_object(name), service_labels(name), {"type": "Opaque", "data": data}, hashed=False)


def revision(service: Mapping[str, Any], templates: Mapping[str, Template]) -> dict[str, Any]:
    """The templates of one generation, kept so that a lost replica of an older one can be replaced while the newer has not served."""
    name = service["metadata"]["name"]
    hashes = {pool: template.hash for pool, template in sorted(templates.items())}
    data = {
        pool: {"hash": template.hash, "kvGeneration": template.kv_generation, "size": template.size, "body": template.body}
        for pool, template in templates.items()
    }
    body = _child(service, REVISION, f"{name}-{names.digest(hashes)}", service_labels(name), {"data": {"pools": data}})
    return {**body, "revision": 1}


def read_revision(raw: Mapping[str, Any]) -> dict[tuple[str, str], Template]:
    """The templates of a revision, its data packed, by (pool, hash); nothing of one that cannot be read."""
    try:
        pools = msgspec.json.decode(raw.get("data") or b"{}").get("pools") or {}
    except (msgspec.DecodeError, AttributeError):
        return {}
    found = {}
    for pool, kept in pools.items():
        try:
            found[pool, kept["hash"]] = Template(kept["body"], kept["hash"], kept["kvGeneration"], int(kept["size"]))
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _child(
    service: Mapping[str, Any], kind: ObjectKind, name: str, labels: Mapping[str, str], fields: Mapping[str, Any], *, hashed: bool = True
) -> dict[str, Any]:
    metadata = service["metadata"]
    body: dict[str, Any] = {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": dict(labels),
            "ownerReferences": [owner(MODEL_SERVICE.api_version, MODEL_SERVICE.kind, metadata["name"], metadata["uid"])],
        },
        **fields,
    }
    if hashed:  # an empty mapping would own all annotations, those of others too
        body["metadata"]["annotations"] = {names.APPLIED_ANNOTATION: names.digest([labels, fields])}
    return body
