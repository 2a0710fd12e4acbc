"""The test bed itself: nothing is left behind, components break and come back, kwok's pods live as their annotations say."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import control_plane as bed
import httpx
import psutil
import pytest
from control_plane import API_SERVER, PATIENCE_S, ControlPlane, Object, accepted, wait_until
from go_programs import Programs

COMPONENTS = ("etcd", API_SERVER, "kube-controller-manager", "kube-scheduler", "kwok")


def pod(namespace: str, name: str, **annotations: str) -> Object:
    marks = {f"tests.penstock.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
    spec = {"containers": [{"name": "worker", "image": "none"}], "nodeSelector": {"type": "kwok"}}
    metadata = {"name": name, "namespace": namespace, "annotations": marks}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def is_ready(plane: ControlPlane, manifest: Object) -> bool:
    conditions = accepted(plane.client.get(plane.path_of(manifest)))["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def test_a_closed_control_plane_leaves_nothing(make_control_plane: Callable[[], ControlPlane]) -> None:
    """Neither a process nor a file; and a component that crashed comes back with its data meanwhile."""
    plane = make_control_plane()
    processes = [psutil.Process(plane.pid(name)) for name in COMPONENTS if plane.binaries.has(name)]
    plane.stop_component(API_SERVER)
    with pytest.raises(httpx.TransportError):
        plane.client.get("/readyz")
    plane.start_component(API_SERVER)
    accepted(plane.client.get("/api/v1/namespaces/default"))
    processes.append(psutil.Process(plane.pid(API_SERVER)))
    plane.close()
    assert [process for process in processes if process.is_running()] == []
    assert not plane.folder.exists()


def test_a_port_taken_meanwhile_is_no_failure(make_control_plane: Callable[[], ControlPlane], monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking for a free port and using it another process may take it: the start is tried again with others."""
    choose, asked = bed._free_ports, []

    def taken_first(count: int) -> list[int]:
        asked.append(count)
        return [*choose(count - 1), taken.getsockname()[1]] if len(asked) == 1 else choose(count)

    monkeypatch.setattr(bed, "_free_ports", taken_first)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        accepted(make_control_plane().client.get("/api/v1/namespaces/default"))
    assert len(asked) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_session_that_is_ended_leaves_no_process(go_programs: Programs, tmp_path: Path, how: signal.Signals) -> None:
    """After `kill -9` of whoever started it the kernel ends the components; told in time, it removes its folder too."""
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-m", "control_plane"], stdout=subprocess.PIPE, text=True, env=environ) as run:
        assert run.stdout is not None
        assert run.stdout.readline().startswith(f"export KUBECONFIG={tmp_path}")
        children = psutil.Process(run.pid).children()
        assert len(children) == len([name for name in COMPONENTS if go_programs.has(name)])
        run.send_signal(how)
    assert psutil.wait_procs(children, timeout=PATIENCE_S)[1] == []
    assert (list(tmp_path.iterdir()) == []) is (how is signal.SIGTERM)


def test_what_an_api_server_refuses_before_it_is_ready_is_no_refusal() -> None:
    """It has not read the roles yet: only events from before a start's end, and not from before its beginning, are left out."""
    starts = [("2026-01-01T10:00:00.000000Z", "2026-01-01T10:00:05.000000Z")]
    asked = ("2026-01-01T09:59:59.999999Z", "2026-01-01T10:00:04.999999Z", "2026-01-01T10:00:05.000000Z")
    assert [bed.too_early({"requestReceivedTimestamp": time}, starts) for time in asked] == [False, True, False]


def test_pods_live_as_their_annotations_say(control_plane: ControlPlane, namespace: str, fake_node: str) -> None:
    """Ready at once, or later, or never; with an address; and gone when told."""
    quick, slow, held = pod(namespace, "quick"), pod(namespace, "slow", ready_after="2s"), pod(namespace, "held", hold="true")
    began_s = time.monotonic()
    for manifest in (held, quick, slow):
        accepted(control_plane.apply(manifest))
    wait_until("quick ready", lambda: is_ready(control_plane, quick))
    wait_until("slow ready", lambda: is_ready(control_plane, slow))
    assert time.monotonic() - began_s >= 2
    assert not is_ready(control_plane, held)
    status = accepted(control_plane.client.get(control_plane.path_of(held)))["status"]
    assert (status["phase"], status["containerStatuses"][0]["ready"]) == ("Running", False)
    assert status["podIP"]
    accepted(control_plane.client.delete(control_plane.path_of(held)))
    wait_until("held gone", lambda: control_plane.client.get(control_plane.path_of(held)).status_code == 404)


def test_a_pod_may_take_its_time_to_go(control_plane: ControlPlane, namespace: str, fake_node: str) -> None:
    """As one that drains: marked for deletion, gone later."""
    lingering = pod(namespace, "lingering", gone_after="2s")
    accepted(control_plane.apply(lingering))
    wait_until("lingering ready", lambda: is_ready(control_plane, lingering))
    began_s = time.monotonic()
    assert "deletionTimestamp" in accepted(control_plane.client.delete(control_plane.path_of(lingering)))["metadata"]
    wait_until("lingering gone", lambda: control_plane.client.get(control_plane.path_of(lingering)).status_code == 404)
    assert time.monotonic() - began_s >= 1, "the deletion's own time has whole seconds"


@pytest.mark.usefixtures("controllers")
def test_a_service_account_may_do_only_what_it_is_given(control_plane: ControlPlane, namespace: str) -> None:
    """Its kubeconfig works, and RBAC is on."""
    own = control_plane.service_account_kubeconfig(namespace, "default")
    said = control_plane.kubectl("get", "modelservices", kubeconfig=own, check=False)
    assert f'User "system:serviceaccount:{namespace}:default" cannot list resource "modelservices"' in said
    grant = ("create", "rolebinding", "view", "--clusterrole=cluster-admin", f"--serviceaccount={namespace}:default", "-n", namespace)
    control_plane.kubectl(*grant)
    wait_until("RBAC to know it", lambda: "No resources found" in control_plane.kubectl("get", "msvc", kubeconfig=own, check=False))


def test_pod_security_is_enforced(control_plane: ControlPlane, namespace: str) -> None:
    """By the real admission plugin, so that what the operator renders can be held to `restricted`."""
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    answer = control_plane.apply(pod(namespace, "root"))
    assert answer.status_code == 403
    assert 'violates PodSecurity "restricted' in answer.json()["message"]
