"""`penstock status`, `explain` and `doctor --cluster` against a real API server, with a real router and worker behind its proxy."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from control_plane import ControlPlane, Object, accepted, wait_until
from penstock_cli.child import Child
from penstock_cli.cluster import open_cluster
from penstock_cli.cluster_doctor import crd, examine, version
from penstock_cli.doctor import ADVICE, MISSING, OK
from penstock_cli.kube_access import Aim
from penstock_cli.redis_server import RedisServer
from penstock_core.api import KINDS, ModelService
from penstock_core.api_terms import API_VERSION
from penstock_operator import names

CORE = "/api/v1"
RBAC = "rbac.authorization.k8s.io/v1"
MAIN = [sys.executable, "-m", "penstock_cli.main"]
ADMIN_KEY = "a" * 32
READY = [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]
RIGHTS = [
    {"apiGroups": ["serving.penstock.dev"], "resources": ["modelservices"], "verbs": ["list", "create", "patch"]},
    {"apiGroups": ["serving.penstock.dev"], "resources": ["workerpools/scale"], "verbs": ["update"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods/proxy", "secrets"], "verbs": ["get"]},
]


class Installed(NamedTuple):
    """An installation in one namespace: a router, a worker, and a user who may look at them."""

    plane: ControlPlane
    namespace: str
    kubeconfig: Path
    router_url: str
    worker: Child


def own_address() -> str:
    """An address of this machine that the API server may connect to: it refuses loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


def make_pod(plane: ControlPlane, namespace: str, name: str, labels: dict[str, str], port: int, env: list[Object] | None = None) -> str:
    """A Pod that no node runs and whose status says it is ready at this machine's address; gives its uid."""
    container = {"name": "main", "image": "none", "ports": [{"name": "http", "containerPort": port}], "env": env or []}
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [container], "schedulingGates": [{"name": "tests/never"}]},
    }
    uid: str = accepted(plane.client.post(f"{CORE}/namespaces/{namespace}/pods", json=body))["metadata"]["uid"]
    status = {"phase": "Running", "podIP": own_address(), "podIPs": [{"ip": own_address()}], "conditions": READY}
    headers = {"content-type": "application/merge-patch+json"}
    accepted(plane.client.patch(f"{CORE}/namespaces/{namespace}/pods/{name}/status", json={"status": status}, headers=headers))
    return uid


def user(plane: ControlPlane, namespace: str, rules: list[Object]) -> Path:
    """A ServiceAccount with these rights in the namespace; gives its kubeconfig."""
    place = {"name": "user", "namespace": namespace}
    accepted(plane.client.post(f"{CORE}/namespaces/{namespace}/serviceaccounts", json={"metadata": place}))
    accepted(plane.apply({"apiVersion": RBAC, "kind": "Role", "metadata": place, "rules": rules}))
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "user"}
    subjects = [{"kind": "ServiceAccount", **place}]
    accepted(plane.apply({"apiVersion": RBAC, "kind": "RoleBinding", "metadata": place, "roleRef": role, "subjects": subjects}))
    return plane.service_account_kubeconfig(namespace, "user")


def part(component: str) -> dict[str, str]:
    return {"app.kubernetes.io/part-of": "penstock", "app.kubernetes.io/component": component}


def worker_labels(replica: str) -> dict[str, str]:
    return {**names.MANAGED_BY, names.SERVICE_LABEL: "llama", names.POOL_LABEL: "all", names.REPLICA_LABEL: replica, names.RANK_LABEL: "0"}


@pytest.fixture
def installed(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Installed]:
    """A router that listens on this machine's address, a worker registered under its Pod's uid, and their Pods."""
    with RedisServer(tmp_path) as redis:
        secrets = {"PENSTOCK_REDIS_URL": redis.url, "PENSTOCK_ADMIN_KEY": ADMIN_KEY, "PENSTOCK_FLEET_TOKEN": "f" * 32}
        secrets["PENSTOCK_CHUNK_SECRET"] = "c" * 16
        words = ["router", "--host", "0.0.0.0", "--port", "0", "--model", "sim", "--url-file", str(tmp_path / "url")]
        router = Child("router", [*MAIN, *words, "--set", "explain_every=1"], tmp_path / "router.log", secrets)
        worker = None
        try:
            url = str(wait_until("the router's URL", lambda: (tmp_path / "url").exists() and (tmp_path / "url").read_text().strip()))
            port = int(url.rpartition(":")[2])
            reference = {"name": "PENSTOCK_ADMIN_KEY", "valueFrom": {"secretKeyRef": {"name": "penstock-secrets", "key": "admin-key"}}}
            place = {"name": "penstock-secrets", "namespace": namespace}
            body = {"apiVersion": "v1", "kind": "Secret", "metadata": place, "stringData": {"admin-key": ADMIN_KEY}}
            accepted(control_plane.client.post(f"{CORE}/namespaces/{namespace}/secrets", json=body))
            make_pod(control_plane, namespace, "penstock-router-0", part("router"), port, [reference])
            uid = make_pod(control_plane, namespace, "llama-all-one", worker_labels("one"), 8000)
            worker = Child(
                "worker", [*MAIN, "worker", "--id", uid, "--speed", "20", "--set", "host=127.0.0.1"], tmp_path / "worker.log", secrets
            )
            local = f"http://127.0.0.1:{port}"
            wait_until("the router sees the worker", lambda: httpx.get(f"{local}/readyz").is_success)
            kubeconfig = user(control_plane, namespace, RIGHTS)
            yield Installed(control_plane, namespace, kubeconfig, local, worker)
        finally:
            for child in (worker, router):
                if child is not None:
                    child.stop(10.0)


def cli(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command without a kubeconfig or a data folder of the machine's own."""
    kept = (
        {name: value for name, value in os.environ.items() if name not in ("KUBECONFIG", "PENSTOCK_DATA")} | {"HOME": "/nowhere"} | environ
    )
    return subprocess.run([*MAIN, *words], capture_output=True, text=True, timeout=120, check=False, env=kept)


def service(namespace: str) -> Object:
    spec = {"model": {"name": "sim"}, "engine": {"type": "Sim"}, "pools": [{"name": "all", "role": "Both", "replicas": 1}]}
    return {"apiVersion": API_VERSION, "kind": "ModelService", "metadata": {"name": "llama", "namespace": namespace}, "spec": spec}


def test_status_and_explain_look_into_a_cluster_with_few_rights(installed: Installed, tmp_path: Path) -> None:
    """A user with rights in one namespace sees ModelServices, workers by their Pods' names, and why a request went where it went."""
    accepted(installed.plane.apply(service(installed.namespace)))
    done = cli("status", "--kubeconfig", str(installed.kubeconfig), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["name"] for one in found["model_services"]] == ["llama"] and found["context"] == "tests"
    assert [one["pod"] for one in found["models"][0]["endpoints"]] == ["llama-all-one"]
    assert found["routers"] == {"penstock-router-0": {"sim": 1}} and found["silent_routers"] == {}
    shown = cli("status", "--data", str(tmp_path), KUBECONFIG=str(installed.kubeconfig))
    assert shown.returncode == 1 and "no `penstock up` runs" in shown.stderr, "a folder named by hand means this machine"
    shown = cli("status", KUBECONFIG=str(installed.kubeconfig), PENSTOCK_DATA=str(tmp_path))
    assert shown.returncode == 0 and "llama-all-one" in shown.stdout and "Context tests" in shown.stdout, shown.stderr
    assert "looking into the kubeconfig's cluster" in shown.stderr
    body = {"model": "sim", "max_tokens": 4, "messages": [{"role": "user", "content": "What is a penstock?"}]}
    answer = httpx.post(f"{installed.router_url}/v1/chat/completions", json=body, timeout=60)
    assert answer.is_success, answer.text
    explained = cli("explain", answer.headers["x-request-id"], "--kubeconfig", str(installed.kubeconfig), "-n", installed.namespace)
    assert explained.returncode == 0 and "llama-all-one" in explained.stdout and "cost" in explained.stdout, explained.stderr
    assert "Profiles in force by now at router" in explained.stdout
    listed = json.loads(cli("explain", "--kubeconfig", str(installed.kubeconfig), "--json").stdout)
    scaling = cli("explain", "scaling", "--kubeconfig", str(installed.kubeconfig), "-n", installed.namespace)
    assert scaling.returncode == 1 and "no autoscaler has decided anything about" in scaling.stderr, scaling.stderr
    assert [one["router"] for one in listed["decisions"]] == ["penstock-router-0"]


def test_doctor_names_what_is_missing_and_what_to_do(installed: Installed) -> None:
    """No operator, and a ready worker that is not registered: missing, status 1; what may not be looked at is advice."""
    make_pod(installed.plane, installed.namespace, "llama-all-two", worker_labels("two"), 8000)
    found = {one.name: one for one in examine(open_cluster(Aim(kubeconfig=installed.kubeconfig)))}
    assert found["api server"].state == found["routers"].state == found["your rights"].state == OK, found
    assert (found["operator"].state, found["operator"].found) == (MISSING, "no Pod")
    assert (found["autoscaler"].state, found["autoscaler"].found) == (OK, "none, and no pool has autoscaling")
    assert found["workers"].state == MISSING and f"{installed.namespace}/llama-all-two" in found["workers"].todo
    assert found["definition of ModelService"].state == ADVICE and "forbidden" in found["definition of ModelService"].todo
    assert all((one.state == OK) == (one.todo == "") for one in found.values())
    make_pod(installed.plane, installed.namespace, "penstock-operator-0", part("operator"), 8080)
    accepted(installed.plane.apply(service(installed.namespace)))
    admin = {one.name: one for one in examine(open_cluster(Aim(kubeconfig=installed.plane.kubeconfig, namespace=installed.namespace)))}
    assert admin["operator"].state == OK
    assert admin["operator's rights"].state == MISSING and "patch workerpools/status" in admin["operator's rights"].found
    assert [admin[f"definition of {kind.kind_facts.name}"].state for kind in KINDS] == [OK] * len(KINDS)
    done = cli("doctor", "--cluster", "--kubeconfig", str(installed.kubeconfig))
    assert done.returncode == 1 and "llama-all-two" in done.stdout, done.stderr


def test_a_router_without_the_key_or_without_a_worker_is_told(installed: Installed) -> None:
    """Without the right to read the Secret the message names it and the variable; with the key in the variable it works."""
    rules = [rule for rule in RIGHTS if rule["resources"] != ["pods/proxy", "secrets"]]
    rules.append({"apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["get"]})
    role = {"name": "user", "namespace": installed.namespace}
    accepted(installed.plane.apply({"apiVersion": RBAC, "kind": "Role", "metadata": role, "rules": rules}, force=True))

    def refused() -> str | None:
        done = cli("status", "--kubeconfig", str(installed.kubeconfig))
        return done.stderr if done.returncode == 1 else None

    said = wait_until("the right is gone", refused)
    assert "penstock-secrets" in said and "PENSTOCK_ADMIN_KEY" in said
    done = cli("status", "--kubeconfig", str(installed.kubeconfig), PENSTOCK_ADMIN_KEY=ADMIN_KEY)
    assert done.returncode == 0, done.stderr
    wrong = cli("status", "--kubeconfig", str(installed.kubeconfig), PENSTOCK_ADMIN_KEY="wrong")
    assert wrong.returncode == 1 and "admin key is missing or wrong" in wrong.stderr
    assert ADMIN_KEY not in said + done.stdout + done.stderr


def test_a_definition_of_another_version_is_told(make_control_plane: Callable[[], ControlPlane]) -> None:
    """A field less or a field more than this version writes: missing, with the way to put it right; gone: the same."""
    plane = make_control_plane()
    cluster = open_cluster(Aim(kubeconfig=plane.kubeconfig))
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/modelservices.serving.penstock.dev"

    def change(changed: Callable[[Object], object]) -> None:
        live = accepted(plane.client.get(path))
        spec = live["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        changed(spec["properties"]["transfer"]["properties"])
        accepted(plane.client.put(path, json=live))

    assert crd(cluster, ModelService).state == OK
    change(lambda fields: fields.update(later={"type": "integer"}))
    assert (found := crd(cluster, ModelService)).state == MISSING and "kubectl apply" in found.todo
    change(lambda fields: fields.pop("later"))
    assert crd(cluster, ModelService).state == OK
    change(lambda fields: fields["claimSeconds"].update(maximum=31))
    assert crd(cluster, ModelService).state == MISSING
    accepted(plane.client.delete(path))
    wait_until("it is gone", lambda: plane.client.get(path).status_code == 404)
    assert "no modelservices" in crd(cluster, ModelService).found


def test_what_cannot_be_reached_is_named(control_plane: ControlPlane, tmp_path: Path) -> None:
    """No kubeconfig, an unknown context, a server that does not answer, no router: status 1, and the message says where it looked."""
    done = cli("status", "--cluster")
    assert done.returncode == 1 and "no kubeconfig at /nowhere/.kube/config" in done.stderr and "Traceback" not in done.stderr
    done = cli("status", "--kubeconfig", str(control_plane.kubeconfig), "--context", "other")
    assert done.returncode == 1 and "context is 'other'; allowed: tests" in done.stderr
    closed = json.loads(control_plane.kubeconfig.read_text())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    closed["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    (tmp_path / "closed").write_text(json.dumps(closed))
    done = cli("explain", "--kubeconfig", str(tmp_path / "closed"))
    assert done.returncode == 1 and f"https://127.0.0.1:{port}" in done.stderr and "'tests'" in done.stderr
    assert version(open_cluster(Aim(kubeconfig=tmp_path / "closed"))).state == MISSING
    done = cli("status", "--kubeconfig", str(control_plane.kubeconfig), "-n", "kube-public")
    assert done.returncode == 1 and "no router runs in namespace 'kube-public'" in done.stderr and "doctor --cluster" in done.stderr
    done = cli("status", "--cluster", "--url", "http://127.0.0.1:1")
    assert done.returncode == 1 and "one or the other" in done.stderr
