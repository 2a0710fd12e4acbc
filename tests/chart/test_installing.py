"""Install, upgrade, uninstall with the real Helm on a real API server, pod security `restricted` enforced by the real admission.

A node played by kwok runs nothing, so probes and images do not count here; that the processes work in these Pods is tests/node's.
"""

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_renders import CHART, INSTALL, NAMESPACE, ROOT
from component_flags import CONTROLLERS, KWOK, SCHEDULER
from control_plane import ControlPlane, accepted, wait_until
from go_programs import Programs
from penstock_operator.own_secret import BYTES

from tests.operator.conftest import OperatorProcess

Object = dict[str, Any]
SECRET = f"/api/v1/namespaces/{NAMESPACE}/secrets/penstock-secrets"
IMAGE = f"penstock:{yaml.safe_load((CHART / 'Chart.yaml').read_text())['appVersion']}"
DEPLOYMENTS = ("penstock-autoscaler", "penstock-operator", "penstock-redis", "penstock-router")
MODELS = "models"
PASSING = {"events"}
"""They go by themselves."""


@pytest.fixture(scope="module")
def plane(go_programs: Programs) -> Iterator[ControlPlane]:
    """A control plane without anything of Penstock, with a node, and two namespaces in which only restricted Pods may run."""
    for name in ("helm", CONTROLLERS, SCHEDULER, KWOK):
        if not go_programs.has(name):
            pytest.skip(f"{go_programs.folder} has no {name}")
    with ControlPlane(go_programs) as started:
        started.add_fake_node("fake-0")
        for name in (NAMESPACE, MODELS):
            labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
            accepted(started.client.post("/api/v1/namespaces", json={"metadata": {"name": name, "labels": labels}}))
            account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
            wait_until("the default ServiceAccount", lambda path=account: started.client.get(path).is_success)
        yield started


@pytest.fixture
def older_chart(tmp_path: Path) -> Path:
    """The chart as a version before this one would be: another version, another image, and a definition that lacks a field."""
    older = tmp_path / "older"
    shutil.copytree(CHART, older)
    chart = yaml.safe_load((older / "Chart.yaml").read_text())
    (older / "Chart.yaml").write_text(yaml.safe_dump(chart | {"version": "0.0.9", "appVersion": "0.0.9"}))
    path = older / "definitions" / "modelservices.yaml"
    definition = yaml.safe_load(path.read_text())
    del definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["rollout"]
    path.write_text(yaml.safe_dump(definition))
    return older


def available(plane: ControlPlane, image: str) -> bool:
    """Whether every Deployment has all its Pods, of this image."""
    for name in DEPLOYMENTS:
        found = plane.client.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{name}").json()
        status, containers = found.get("status", {}), found["spec"]["template"]["spec"]["containers"]
        if status.get("observedGeneration") != found["metadata"]["generation"] or containers[0]["image"] != image:
            return False
        if not status.get("availableReplicas") == status.get("updatedReplicas") == status.get("replicas") == found["spec"]["replicas"]:
            return False
    return True


def left(plane: ControlPlane) -> dict[str, list[str]]:
    """Names by kind of everything in Penstock's namespace and of everything cluster-wide that Helm has made."""
    found: dict[str, list[str]] = {}
    groups = accepted(plane.client.get("/apis"))["groups"]
    for root in ("/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)):
        for kind in accepted(plane.client.get(root))["resources"]:
            if "list" not in kind["verbs"] or "/" in kind["name"] or kind["name"] in PASSING:
                continue
            where = f"/namespaces/{NAMESPACE}" if kind["namespaced"] else ""
            query = {} if kind["namespaced"] else {"labelSelector": "app.kubernetes.io/managed-by=Helm"}
            answer = plane.client.get(f"{root}{where}/{kind['name']}", params=query)
            if answer.status_code == 429:  # a kind whose definition was changed just now: unknown yet
                found[kind["name"]] = ["?"]
            elif listed := accepted(answer)["items"]:
                found[kind["name"]] = sorted(one["metadata"]["name"] for one in listed)
    return found


def fill(plane: ControlPlane) -> str:
    """What the operator's first container does, with the operator's own rights; gives what it printed."""
    kubeconfig = plane.service_account_kubeconfig(NAMESPACE, "penstock-operator")
    command = [sys.executable, "-m", "penstock_cli.main", "fill-secret", "penstock-secrets", "--namespace", NAMESPACE]
    done = subprocess.run(
        [*command, "--kubeconfig", str(kubeconfig)], capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(line: dict[str, Any]) -> bool:
    """Whether the operator's log line tells of an error or of a right that it lacks.

    A server that has just been given the definitions refuses owner references to them, in the same words as a lacking right,
    until it reads its own discovery again (30 s): the operator tries again and gets through.
    """
    return line["level"] == "error" or ("forbidden" in str(line).lower() and "cannot find RESTMapping" not in str(line))


def operate(plane: ControlPlane, folder: Path) -> None:
    """Run the operator under the account and the rights that the chart gave it, until a ModelService's Pods have been admitted."""
    kubeconfig = plane.service_account_kubeconfig(NAMESPACE, "penstock-operator")
    operator = OperatorProcess(plane, folder, kubeconfig, namespace=NAMESPACE)
    try:
        operator.wait_leading()
        sample = yaml.safe_load((ROOT / "manifests" / "samples" / "sim-pd.yaml").read_text())
        sample["metadata"]["namespace"] = MODELS
        accepted(plane.apply(sample))
        path = plane.path_of(sample)

        def ready() -> bool:
            conditions = plane.client.get(path).json().get("status", {}).get("conditions", ())
            return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

        wait_until("the sample's Pods", ready)
        accepted(plane.client.delete(path))
        pods = f"/api/v1/namespaces/{MODELS}/pods"
        wait_until("the sample's Pods are gone", lambda: not accepted(plane.client.get(pods))["items"])
        assert [line for line in operator.logged() if refused(line)] == []
    finally:
        operator.child.stop(10.0)


def test_install_upgrade_uninstall(plane: ControlPlane, older_chart: Path, tmp_path: Path) -> None:
    """Every Pod is admitted; the upgrade replaces Pods and definitions and keeps the secrets; afterwards only definitions are left."""
    before = left(plane)
    plane.helm("install", "penstock", str(older_chart), "--namespace", NAMESPACE)
    wait_until("all of the older chart", lambda: available(plane, "penstock:0.0.9"))
    assert fill(plane) == f"Secret penstock-secrets: {', '.join(BYTES)} made\n"
    secrets = plane.client.get(SECRET).json()["data"]
    assert {key: len(base64.b64decode(value)) for key, value in secrets.items()} == {key: 2 * size for key, size in BYTES.items()}
    assert fill(plane) == "Secret penstock-secrets: nothing was missing\n"

    plane.helm("upgrade", "penstock", str(CHART), "--namespace", NAMESPACE, "--set", "router.replicas=3")
    wait_until("all of the new chart", lambda: available(plane, IMAGE))
    assert plane.client.get(SECRET).json()["data"] == secrets
    assert "rollout" in plane.kubectl("explain", "modelservice.spec")
    operate(plane, tmp_path)
    assert "leases" in left(plane)

    plane.helm("rollback", "penstock", "1", "--namespace", NAMESPACE)
    wait_until("all of the older chart again", lambda: available(plane, "penstock:0.0.9"))
    assert plane.client.get(SECRET).json()["data"] == secrets

    plane.helm("uninstall", "penstock", "--namespace", NAMESPACE)
    definitions = {"customresourcedefinitions": ["modelservices.serving.penstock.dev", "workerpools.serving.penstock.dev"]}
    wait_until("only what was there and the definitions", lambda: left(plane) == {**before, **definitions})

    plane.helm("install", "penstock", str(CHART), "--namespace", NAMESPACE)  # over the definitions that stayed
    wait_until("all, again", lambda: available(plane, IMAGE))
    plane.helm("uninstall", "penstock", "--namespace", NAMESPACE)


def test_the_manifest_for_kubectl_installs_the_same(plane: ControlPlane) -> None:
    """Applied twice, as one does to be sure: the second time changes nothing, secrets included."""
    words = ("apply", "--server-side", "-f", str(INSTALL))
    wait_until("the namespace is free of the release", lambda: not plane.client.get(SECRET).is_success)
    first = plane.kubectl(*words, "--force-conflicts")
    assert "Warning" not in first, first
    wait_until("all", lambda: available(plane, IMAGE))
    fill(plane)
    secrets = accepted(plane.client.get(SECRET))["data"]
    plane.kubectl(*words)
    assert plane.client.get(SECRET).json()["data"] == secrets
    plane.kubectl("delete", "-f", str(INSTALL), "--ignore-not-found", "--wait=false")


def test_a_pod_that_may_do_more_is_refused_there(plane: ControlPlane) -> None:
    """The admission is real: what the Pods above pass is not passed by one with a root user."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root", "namespace": MODELS}}
    answer = plane.apply({**pod, "spec": {"containers": [{"name": "root", "image": IMAGE}]}})
    assert answer.status_code == 403
    assert "violates PodSecurity" in answer.json()["message"]
