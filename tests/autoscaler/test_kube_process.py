"""The autoscaler process in a cluster, end to end: a real API server, operator, router and workers, kwok in the kubelet's place."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from control_plane import ControlPlane, accepted, wait_until
from kube_bed import ACCOUNT, OURS, autoscaler_account
from kube_workers import Clients, WorkersBeside, metric_of, wait_polling
from penstock_autoscaler.rights import RULES
from penstock_cli.child import Child
from penstock_cli.redis_server import RedisServer
from penstock_core.api_terms import API_VERSION

from tests.operator.conftest import denied, start_operator

__all__ = ["start_operator"]  # a fixture

SPEED = 0.05
"""So slow that a few requests a second are work for four workers, and cost this machine nothing."""
PROMPT = "the gate opens and the water runs down to the wheel " * 60
SECRETS = {"PENSTOCK_FLEET_TOKEN": "f" * 32, "PENSTOCK_CHUNK_SECRET": "5eed"}
PATIENCE_S = 180.0
BRAIN = {"period_s": 5, "asleep_s": 0.5, "look_s": 1, "sample_s": 15, "stable_s": 8, "idle_s": 12, "lease_s": 3, "what_if": "false"}
"""By the fluid bound: replays are the simulator's, and compiling them would be most of the time that this takes."""


class Town:
    """One namespace with everything that serves one model; `autoscaler()` starts one more autoscaler."""

    def __init__(self, plane: ControlPlane, namespace: str, redis_url: str, folder: Path, stack: ExitStack) -> None:
        self.plane = plane
        self.namespace = namespace
        self._folder = folder
        self._stack = stack
        self._environ = {**SECRETS, "PENSTOCK_REDIS_URL": redis_url}
        self._kubeconfig = autoscaler_account(plane)
        self._numbers = iter(range(10))
        settings = ("--model", "sim", "--set", "pool=all", "--set", f"speed={SPEED}")
        self.workers = stack.enter_context(WorkersBeside(plane, namespace, folder, self._environ, *settings))
        url_file = folder / "router.url"
        patient = ("--set", "queue_timeout_s=170", "--set", "shed_up_to_priority=-101")
        self._start("router", "--port", "0", "--url-file", str(url_file), *patient)
        self.url: str = wait_until("the router listens", lambda: url_file.exists() and url_file.read_text().strip())

    def autoscaler(self) -> tuple[Child, str]:
        """The process and the URL of its metrics."""
        number = next(self._numbers)
        url_file = self._folder / f"autoscaler-{number}.url"
        told = BRAIN | {"host": "127.0.0.1", "announce_path": str(url_file), "watch_namespace": self.namespace}
        words = [word for name, value in told.items() for word in ("--set", f"{name}={value}")]
        child = self._start("autoscaler", "--port", "0", "--kubeconfig", str(self._kubeconfig), *words, name=f"autoscaler-{number}")
        url: str = wait_until("its probes listen", lambda: url_file.exists() and url_file.read_text().strip())
        wait_until(f"it is ready: {child.said()}", lambda: httpx.get(f"{url}/readyz").is_success)
        return child, url

    def _start(self, command: str, *words: str, name: str = "") -> Child:
        full = [sys.executable, "-m", "penstock_cli.main", command, *words]
        child = Child(command, full, self._folder / f"{name or command}.log", self._environ)
        self._stack.callback(child.stop, 20.0)
        return child

    def serve(self, **autoscaling: int) -> None:
        """The ModelService: one undivided pool of the sim engine with these bounds."""
        pools = [{"name": "all", "role": "Both", "autoscaling": autoscaling}]
        slo = {"ttftMilliseconds": 3_000, "itlMilliseconds": 400}
        spec: dict[str, Any] = {"model": {"name": "sim"}, "engine": {"type": "Sim", "host": "Process"}, "pools": pools, "slo": slo}
        spec |= {"drain": {"deadlineSeconds": 3}}
        body = {"apiVersion": API_VERSION, "kind": "ModelService", "metadata": {"name": "sim", "namespace": self.namespace}, "spec": spec}
        accepted(self.plane.apply(body, force=True))

    def size(self) -> int:
        """Replicas asked for."""
        answer = self.plane.client.get(f"{OURS}/namespaces/{self.namespace}/workerpools/sim-all")
        return int(answer.json()["spec"]["replicas"]) if answer.is_success else -1

    def endpoints(self) -> int:
        """Those that the router knows."""
        said = httpx.get(f"{self.url}/readyz", timeout=30, trust_env=False).json()
        return int(said.get("models", {}).get("sim", {}).get("endpoints", 0))

    def wait_size(self, replicas: int) -> None:
        """Until so many are asked for and serve."""
        wait_polling(
            lambda: f"{replicas} replicas; asked for {self.size()}, serving {self.endpoints()}: {self.decided()} {self._log()}",
            lambda: self.size() == self.endpoints() == replicas,
            PATIENCE_S,
        )

    def decided(self) -> dict[str, Any]:
        """The condition ScalingDecided."""
        service = accepted(self.plane.client.get(f"{OURS}/namespaces/{self.namespace}/modelservices/sim"))
        return next((one for one in service.get("status", {}).get("conditions", ()) if one["type"] == "ScalingDecided"), {})

    def _log(self) -> str:
        return "\n".join(path.read_text()[-1_500:] for path in sorted(self._folder.glob("autoscaler-*.log")))


@pytest.fixture
def town(
    control_plane: ControlPlane,
    namespace: str,
    make_redis_server: Callable[[], RedisServer],
    start_operator: Callable[..., Any],
    tmp_path: Path,
) -> Iterator[Town]:
    if control_plane.client.get("/api/v1/nodes/autoscaled-node").status_code == 404:
        control_plane.add_fake_node("autoscaled-node", pods="100")
    redis_url = make_redis_server().url
    before = len(control_plane.audited())
    with ExitStack() as stack:
        start_operator(control_plane, namespace=namespace, watch_namespace=namespace, redis_url=redis_url).wait_leading()
        yield Town(control_plane, namespace, redis_url, tmp_path, stack)
    events = [event for event in control_plane.audited()[before:] if event["user"]["username"].endswith(ACCOUNT)]
    assert denied(events) == set()
    asked = {(what.get("apiGroup", ""), _plural(what), event["verb"]) for event in events if (what := event.get("objectRef", {}))}
    granted = {(rule["apiGroups"][0], rule["resources"][0], verb) for rule in RULES for verb in rule["verbs"]}
    assert granted - asked == set(), "a right that was not needed"


def _plural(what: dict[str, str]) -> str:
    return what.get("resource", "") + (f"/{what['subresource']}" if what.get("subresource") else "")


def test_one_four_one_none_and_back_without_a_failed_request(town: Town) -> None:
    """Load brings four replicas; the acting autoscaler is killed and another brings them back to one; without traffic and with a lower
    bound of 0 none is left; the next request is held, and answered by a first replica."""
    town.serve(minReplicas=1, maxReplicas=4)
    first, first_url = town.autoscaler()
    town.wait_size(1)
    leads = metric_of(first_url, "penstock_autoscaler_leader")
    wait_until("it acts", lambda: leads() == 1)
    _, second_url = town.autoscaler()
    with Clients(town.url, "sim", PROMPT, tokens=4) as clients:
        clients.rate_per_s = 5.0
        town.wait_size(4)
        assert metric_of(second_url, "penstock_autoscaler_leader")() == 0
        os.kill(first.pid, signal.SIGKILL)
        clients.rate_per_s = 0.3
        town.wait_size(1)
        assert metric_of(second_url, "penstock_autoscaler_leader")() == 1
        assert town.decided()["status"] == "True"
        clients.rate_per_s = 0.0
        town.serve(minReplicas=0, maxReplicas=4)
        town.wait_size(0)
        assert clients.ask() == ""
        assert town.size() == 1
    assert clients.failed == []
    assert len(clients.ended) > 20
    assert town.workers.failures == []
