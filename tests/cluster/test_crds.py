"""The committed CRDs on a real API server: taken, defaulted, explained, shown, scaled, and merged between managers."""

from pathlib import Path

import pytest
import yaml
from cluster_fixtures import CRD_FILES, ROOT
from control_plane import ControlPlane, Object, accepted, wait_until
from penstock_core.api import KINDS, ModelService, WorkerPool
from penstock_core.api_terms import Connector
from resource_objects import service, with_status, worker_pool

SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))

BOTH: Object = {"name": "all", "role": "Both"}


@pytest.mark.parametrize("path", CRD_FILES, ids=lambda path: path.stem)
def test_a_crd_is_structural_and_established(control_plane: ControlPlane, path: Path) -> None:
    """Acceptance covers the cost of every CEL rule; a schema that is not structural would be served with a complaint."""
    crd: Object = yaml.safe_load(path.read_text())
    told = accepted(control_plane.client.get(control_plane.path_of(crd)))["status"]["conditions"]
    assert {one["type"]: one["status"] for one in told} == {"NamesAccepted": "True", "Established": "True"}


def test_the_least_one_can_write_is_filled_with_defaults(control_plane: ControlPlane, namespace: str) -> None:
    """Five lines of spec; what comes back is the whole thing, and the typed value agrees with the server on every default."""
    written = service(namespace=namespace, pools=[BOTH])
    made = accepted(control_plane.apply(written))
    assert made["spec"] == {
        "model": {"name": "llama", "revision": "main", "source": {}},
        "engine": {"type": "Sim", "host": "Ray", "image": "", "args": [], "env": [], "profileName": ""},
        "slo": {"ttftMilliseconds": 500, "itlMilliseconds": 50, "attainmentPercent": 95},
        "transfer": {"claimSeconds": 30},
        "rollout": {"maxUnavailable": 0, "maxSurge": 1, "progressDeadlineSeconds": 600, "paused": False},
        "scaling": {"paused": False, "manualHoldSeconds": 1800},
        "drain": {"deadlineSeconds": 300},
        "pools": [{"name": "all", "role": "Both", "replicas": 1, "parallelism": {"tensor": 1, "pipeline": 1}, "podTemplate": {}}],
    }
    assert "status" not in made
    assert ModelService.model_validate(made).spec == ModelService.model_validate(written).spec


def test_parents_without_their_own_fields_get_the_defaults_too(control_plane: ControlPlane, namespace: str) -> None:
    """`slo: {}` and `rollout: {maxSurge: 2}` mean the defaults for the rest, not nothing."""
    made = accepted(control_plane.apply(service(namespace=namespace, slo={}, rollout={"maxSurge": 2})))["spec"]
    assert made["slo"] == {"ttftMilliseconds": 500, "itlMilliseconds": 50, "attainmentPercent": 95}
    assert made["rollout"] == {"maxUnavailable": 0, "maxSurge": 2, "progressDeadlineSeconds": 600, "paused": False}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_survives_the_round_trip(control_plane: ControlPlane, namespace: str, path: Path) -> None:
    """Applied with kubectl as its reader would, read back as a typed value, and equal to the file's."""
    control_plane.kubectl("apply", "--server-side", "-n", namespace, "-f", str(path))
    written: Object = yaml.safe_load(path.read_text())
    written["metadata"]["namespace"] = namespace
    read = accepted(control_plane.client.get(control_plane.path_of(written)))
    typed = ModelService.model_validate(read)
    assert typed.spec == ModelService.model_validate(written).spec
    again = control_plane.apply({**written, "spec": typed.spec.model_dump(mode="json", by_alias=True, exclude_none=True)})
    assert accepted(again)["metadata"]["generation"] == 1, "what the typed value writes is what was read"


def test_a_pod_template_keeps_fields_that_we_do_not_know(control_plane: ControlPlane, namespace: str) -> None:
    """The API server prunes unknown fields everywhere else."""
    template = {"spec": {"containers": [{"name": "worker", "resources": {"limits": {"x.example/y": "1"}}}]}}
    pools = [{"name": "all", "role": "Both", "podTemplate": template}]
    assert accepted(control_plane.apply(service(namespace=namespace, pools=pools)))["spec"]["pools"][0]["podTemplate"] == template


def test_an_absent_connector_is_the_engines_own() -> None:
    """No default of the schema can depend on another field, so the typed value answers."""
    assert ModelService.model_validate(service(engine={"type": "SGLang"})).spec.connector is Connector.SGLANG
    assert ModelService.model_validate(service()).spec.connector is Connector.NIXL


def test_every_field_is_explained(control_plane: ControlPlane) -> None:
    """`kubectl explain --recursive` lists the fields; each has a text of its own when asked for."""

    def unexplained(kind: type[ModelService] | type[WorkerPool]) -> list[str]:
        schema = accepted(control_plane.client.get("/openapi/v3/apis/serving.penstock.dev/v1alpha1"))["components"]["schemas"]
        whole = schema[f"dev.penstock.serving.v1alpha1.{kind.kind_facts.name}"]["properties"]
        return [*_bare("spec", whole["spec"]), *_bare("status", whole["status"])]

    for kind in KINDS:
        wait_until("the schema is published", lambda kind=kind: kind.kind_facts.plural in control_plane.kubectl("api-resources"))
        assert unexplained(kind) == []
    text = control_plane.kubectl("explain", "modelservice.spec.pools.parallelism.tensor")
    assert "Ranks that share each layer." in text


def _bare(path: str, schema: Object) -> list[str]:
    """Paths of the fields below (and with) this one that have no description."""
    missing = [] if schema.get("description") else [path]
    for name, field in schema.get("properties", {}).items():
        missing += _bare(f"{path}.{name}", field)
    for name, field in schema.get("items", {}).get("properties", {}).items():
        missing += _bare(f"{path}[].{name}", field)
    return missing


def test_kubectl_get_shows_what_matters(control_plane: ControlPlane, namespace: str) -> None:
    """Columns from status and spec, by the short names and the category."""
    accepted(control_plane.apply(service(namespace=namespace)))
    accepted(control_plane.apply(worker_pool(namespace=namespace, replicas=3)))
    ready = {"type": "Ready", "status": "False", "reason": "Loading", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    shown = with_status(service(namespace=namespace), conditions=[ready], prefill="1/2", decode="2/2")
    accepted(control_plane.apply(shown, "operator", status=True))
    header, row = control_plane.kubectl("get", "msvc", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "READY", "PREFILL", "DECODE", "TTFT-SLO", "AGE"]
    assert row.split()[:5] == ["llama", "False", "1/2", "2/2", "500"]
    header, row = control_plane.kubectl("get", "wp", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "READY", "ROLE", "DESIRED", "SERVING", "DRAINING", "AGE"]
    assert row.split()[:3] == ["llama-decode", "Decode", "3"]
    both = control_plane.kubectl("get", "penstock", "-n", namespace, "-o", "name").split()
    assert both == ["modelservice.serving.penstock.dev/llama", "workerpool.serving.penstock.dev/llama-decode"]
