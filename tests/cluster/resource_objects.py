"""Right ModelServices and WorkerPools as plain objects, for tests to change and apply."""

from typing import Any

from control_plane import Object
from penstock_core.api_terms import API_VERSION

PREFILL: Object = {"name": "prefill", "role": "Prefill"}
DECODE: Object = {"name": "decode", "role": "Decode"}


def service(name: str = "llama", namespace: str | None = None, **spec: Any) -> Object:
    """A ModelService with a prefill pool and a decode pool, parts of its spec replaced; None takes a part out."""
    whole: Object = {"model": {"name": "llama"}, "engine": {"type": "Sim"}, "pools": [PREFILL, DECODE], **spec}
    return _object("ModelService", name, namespace, whole)


def pools(**changed: Any) -> list[Object]:
    """Its two pools, the decode pool with changes."""
    return [PREFILL, {**DECODE, **changed}]


def worker_pool(name: str = "llama-decode", namespace: str | None = None, **spec: Any) -> Object:
    """The WorkerPool of its decode pool, parts of its spec replaced; None takes a part out."""
    whole: Object = {"model": {"name": "llama"}, "engine": {"type": "Sim"}, "modelService": "llama", "pool": "decode", "role": "Decode"}
    return _object("WorkerPool", name, namespace, {**whole, **spec})


def with_status(manifest: Object, **status: Any) -> Object:
    """The object with a status and without its spec, as a status is applied."""
    return {key: value for key, value in manifest.items() if key != "spec"} | {"status": status}


def _object(kind: str, name: str, namespace: str | None, spec: Object) -> Object:
    metadata = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": metadata,
        "spec": {key: value for key, value in spec.items() if value is not None},
    }
