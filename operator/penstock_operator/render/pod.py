"""The Pod of a worker: one template a pool, and the Pods of a gang made from it.

`plan` renders templates, hashes and instantiates them. The template holds all that a change of which must replace the Pod;
what tells one Pod from another (name, rank, leader) comes in `instantiate`. Pod security `restricted` holds for it.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from penstock_core.api import ModelServiceSpec
from penstock_core.api_parts import EnvVar, Pool
from penstock_core.api_terms import EngineHost, EngineType

from penstock_operator import names
from penstock_operator.config import OperatorConfig, OperatorSecrets
from penstock_operator.kinds import POD, WORKER_POOL
from penstock_operator.render.merge import merge_template
from penstock_operator.render.secret import secret_digest, secret_env

PORT = 8000
GANG_PORT = 8001
"""Where each Pod answers probes, and a gang's leading Pod the others, if Ray hosts the engine: the worker's own port comes and goes with
the engine there."""
CONTAINER = "worker"
GRACE_S = 15
"""Beyond the drain's deadline, to leave the registry and to end."""
_USER = 65_532
_MODEL_PATH = "/model"
_START_S = 3_600
"""Weights may take this long to load."""
_POLL_S = 5
_RANK, _LEADER = "PENSTOCK_GANG_RANK", "PENSTOCK_GANG_LEADER"
"""Environment variables in which the Pods of one gang differ."""
_SPLIT_WORDS = {
    EngineType.VLLM: ("--tensor-parallel-size", "--pipeline-parallel-size"),
    EngineType.SGLANG: ("--tp-size", "--pp-size"),
}


class Template(msgspec.Struct, frozen=True):
    """A rendered Pod template with its two hashes; `size` = Pods of a replica."""

    body: dict[str, Any]
    hash: str
    kv_generation: str
    size: int


def kv_generation(spec: ModelServiceSpec, config: OperatorConfig) -> str:
    """Hash of what KV bytes depend on: image, model and its revision, engine with its arguments (dtype among them), connector."""
    engine, model = spec.engine, spec.model
    source = model.source.model_dump(mode="json", exclude_none=True)
    return names.digest(
        [engine.image or config.image, model.name, model.revision, source, engine.type.value, list(engine.args), spec.connector.value]
    )


def render_template(
    service: str, spec: ModelServiceSpec, pool: Pool, pod_template: Mapping[str, Any], config: OperatorConfig, secrets: OperatorSecrets
) -> Template:
    """The Pod template of one pool. `pod_template` is the user's, as it stands in the resource (nulls kept)."""
    generation = kv_generation(spec, config)
    size = max(1, pool.pods_per_replica)
    labels = {**pool_labels(service, pool), names.KV_GENERATION_LABEL: generation}
    pod_spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": spec.drain.deadline_seconds + GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(service, spec, pool, generation, config, secrets)],
        "volumes": _volumes(spec),
    }
    digest = secret_digest(secrets)
    annotations = {"annotations": {names.SECRETS_ANNOTATION: digest}} if digest else {}
    body = merge_template({"metadata": {"labels": labels, **annotations}, "spec": pod_spec}, pod_template)
    body["metadata"]["labels"] = {**body["metadata"].get("labels", {}), **labels}
    return Template(body=body, hash=names.digest([body, size]), kv_generation=generation, size=size)


def pool_labels(service: str, pool: Pool) -> dict[str, str]:
    """Labels of everything that belongs to one pool."""
    return {**service_labels(service), names.POOL_LABEL: pool.name, names.ROLE_LABEL: pool.role.value}


def service_labels(service: str) -> dict[str, str]:
    """Labels of everything that belongs to one ModelService."""
    return {
        "app.kubernetes.io/name": "penstock-worker",
        "app.kubernetes.io/part-of": "penstock",
        **names.MANAGED_BY,
        names.SERVICE_LABEL: service,
    }


def instantiate(template: Template, *, namespace: str, service: str, pool: str, replica: str, rank: int, pool_uid: str) -> dict[str, Any]:
    """One Pod of the gang `replica`, ready to be applied."""
    name = names.pod_name(service, pool, replica, rank, template.size)
    leader = names.pod_name(service, pool, replica, 0, template.size)
    metadata = template.body["metadata"]
    spec = msgspec.json.decode(msgspec.json.encode(template.body["spec"]))
    spec |= {"hostname": name, "subdomain": names.workers_object(service)}
    gang = [
        {"name": _RANK, "value": str(rank)},
        {"name": _LEADER, "value": f"{leader}.{names.workers_object(service)}.{namespace}.svc"},
    ]
    for container in spec["containers"]:
        if container["name"] == CONTAINER and template.size > 1:
            container["env"] = [*container.get("env", ()), *gang]
    labels = {names.TEMPLATE_HASH_LABEL: template.hash, names.REPLICA_LABEL: replica, names.RANK_LABEL: str(rank)}
    return {
        "apiVersion": POD.api_version,
        "kind": POD.kind,
        "metadata": {
            **metadata,
            "name": name,
            "namespace": namespace,
            "labels": {**metadata["labels"], **labels},
            "ownerReferences": [owner(WORKER_POOL.api_version, WORKER_POOL.kind, names.pool_object(service, pool), pool_uid)],
        },
        "spec": spec,
    }


def owner(api_version: str, kind: str, name: str, uid: str) -> dict[str, Any]:
    """The reference by which the garbage collector takes an object with its owner."""
    return {"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": True, "blockOwnerDeletion": True}


def _container(
    service: str, spec: ModelServiceSpec, pool: Pool, generation: str, config: OperatorConfig, secrets: OperatorSecrets
) -> dict[str, Any]:
    ray = spec.engine.host is EngineHost.RAY
    ports = [{"name": "http", "containerPort": PORT, "protocol": "TCP"}]
    if ray:
        ports.append({"name": "gang", "containerPort": GANG_PORT, "protocol": "TCP"})
    serves, lives = (("/readyz", "gang"), ("/livez", "gang")) if ray else (("/health", "http"), ("/health", "http"))
    return {
        "name": CONTAINER,
        "image": spec.engine.image or config.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["penstock", "worker"],
        "args": _args(spec, pool, generation),
        "env": _env(service, spec, secrets),
        "ports": ports,
        "startupProbe": _probe(serves, _POLL_S, _START_S // _POLL_S),
        "readinessProbe": _probe(serves, _POLL_S, 3),
        "livenessProbe": _probe(lives, 10, 6),
        "resources": _resources(spec, pool),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": _mounts(spec),
    }


def _probe(asked: tuple[str, str], period_s: int, failures: int) -> dict[str, Any]:
    path, port = asked
    return {"httpGet": {"path": path, "port": port}, "timeoutSeconds": 5, "periodSeconds": period_s, "failureThreshold": failures}


def literal(text: str) -> str:
    """The text as an argument of a container, safe from the expansion of $(NAME)."""
    return text.replace("$(", "$$(")


def _args(spec: ModelServiceSpec, pool: Pool, generation: str) -> list[str]:
    settings = {
        "engine": spec.engine.type.value.lower(),
        "pool": pool.name,
        "advertise_host": "$(POD_IP)",
        "transfer_host": "$(POD_IP)",
        "kv_generation": generation,
        "kv_claim_seconds": str(spec.transfer.claim_seconds),
        "drain_s": str(spec.drain.deadline_seconds),
    }
    if spec.engine.host is EngineHost.RAY:
        settings |= {"engine_host": "ray", "gang_port": str(GANG_PORT), "gang_size": str(max(1, pool.pods_per_replica))}
        if pool.accelerator is not None and pool.accelerator.resource_name.endswith("/gpu"):
            settings["gang_gpus"] = str(pool.accelerator.count)
        if pool.pods_per_replica > 1:
            settings |= {"gang_rank": f"$({_RANK})", "gang_leader": f"$({_LEADER}):{GANG_PORT}"}
    if spec.engine.profile_name:
        settings["profile"] = literal(spec.engine.profile_name)
    told = ["--id", "$(POD_UID)", "--role", pool.role.worker_role.value, "--model", literal(spec.model.name)]
    told += ["--host", "", "--port", str(PORT)]  # every address of the Pod's IP family, guarded by the NetworkPolicy and the token
    sim = spec.engine.type is EngineType.SIM
    if not sim:
        settings |= _engine_settings(spec, pool)
    for name, value in settings.items():
        told += ["--set", f"{name}={value}"]
    return told + [literal(text) for text in spec.engine.args] if sim else told


def _engine_settings(spec: ModelServiceSpec, pool: Pool) -> dict[str, str]:
    """What a worker is told of an engine that is its child: the connector, the split, the user's words, the model's place."""
    tensor, pipeline = _SPLIT_WORDS[spec.engine.type]
    split = ((tensor, pool.parallelism.tensor), (pipeline, pool.parallelism.pipeline))
    words = [word for flag, ways in split if ways > 1 for word in (flag, str(ways))]
    words += [literal(text) for text in spec.engine.args]
    settings = {"connector": spec.connector.value.lower(), "engine_args": msgspec.json.encode(words).decode()}
    if spec.model.source.hub is not None:
        return {**settings, "model_hub": literal(spec.model.name), "model_revision": literal(spec.model.revision)}
    return {**settings, "model_folder": "$(PENSTOCK_MODEL_PATH)"}


def _env(service: str, spec: ModelServiceSpec, secrets: OperatorSecrets) -> list[dict[str, Any]]:
    env: list[dict[str, Any]] = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 -- the one writable folder of a read-only root
    ]
    if spec.engine.type is not EngineType.SIM:
        env.append({"name": "LOGNAME", "value": "penstock"})  # engines ask for a name that their images' /etc/passwd has not
    env += secret_env(names.workers_object(service), secrets, ray=spec.engine.host is EngineHost.RAY)
    source = spec.model.source
    if source.pvc is not None:
        env.append({"name": "PENSTOCK_MODEL_PATH", "value": f"{_MODEL_PATH}/{source.pvc.path.strip('/')}".rstrip("/")})
    elif source.oci is not None:
        env.append({"name": "PENSTOCK_MODEL_PATH", "value": _MODEL_PATH})
    elif source.hub is not None and source.hub.token_secret_ref is not None:
        token = source.hub.token_secret_ref
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": token.name, "key": token.key}}})
    own = {variable["name"] for variable in env}
    return env + [_user_variable(variable) for variable in spec.engine.env if variable.name not in own]


def _user_variable(variable: EnvVar) -> dict[str, Any]:
    if variable.value_from is None:
        return {"name": variable.name, "value": literal(variable.value or "")}
    return {"name": variable.name, "valueFrom": variable.value_from.model_dump(mode="json", by_alias=True, exclude_none=True)}


def _resources(spec: ModelServiceSpec, pool: Pool) -> dict[str, Any]:
    if pool.accelerator is not None:
        return {"limits": {pool.accelerator.resource_name: str(pool.accelerator.count)}}
    if spec.engine.type is EngineType.SIM:
        return {"requests": {"cpu": "100m", "memory": "1Gi" if spec.engine.host is EngineHost.RAY else "256Mi"}}
    return {}


def _volumes(spec: ModelServiceSpec) -> list[dict[str, Any]]:
    shared = "8Gi" if spec.engine.type is not EngineType.SIM else "128Mi" if spec.engine.host is EngineHost.RAY else "64Mi"
    volumes: list[dict[str, Any]] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}},
        {"name": "tmp", "emptyDir": {}},
    ]
    source = spec.model.source
    if source.pvc is not None:
        volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": source.pvc.name, "readOnly": True}})
    elif source.oci is not None:
        volumes.append({"name": "model", "image": {"reference": source.oci.image, "pullPolicy": "IfNotPresent"}})
    return volumes


def _mounts(spec: ModelServiceSpec) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    if spec.model.source.pvc is not None or spec.model.source.oci is not None:
        mounts.append({"name": "model", "mountPath": _MODEL_PATH, "readOnly": True})
    return mounts
