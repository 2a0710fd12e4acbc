"""Penstock as a user installs it on the real node: the image built from this checkout, the chart, a ModelService.

Tests call it; every wait is for what the API server says. It knows no streams: `stream_clients` has those.
"""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
from control_plane import PATIENCE_S, Object, accepted, wait_until
from penstock_operator import names
from prometheus_client.parser import text_string_to_metric_families
from real_node import FOLDER, RealNode

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "penstock"
SAMPLE = ROOT / "manifests" / "samples" / "sim-pd.yaml"
NAMESPACE = "penstock-system"
DEMO, LEAVING = "demo", "leaving"
"""Namespaces: the sample lives in the first; what is deleted, in the second."""
REPOSITORY, TAG, NEXT_TAG = "localhost/penstock", "test", "test-next"
ARCHIVE_ENV = "PENSTOCK_TEST_IMAGE"
_BUILD_S = 540.0
_SERVICES = "/apis/serving.penstock.dev/v1alpha1/namespaces/{}/modelservices/{}"


def build_image(say: Callable[[str], None]) -> Path:
    """`make image` on a base of Debian packages, as an archive: two to four minutes, a second time half of it.

    `$PENSTOCK_TEST_IMAGE` may name an archive that was made before, of localhost/penstock:test.
    """
    made = os.environ.get(ARCHIVE_ENV)
    if made:
        return Path(made)
    archive = FOLDER / "image.tar"
    environ = {**os.environ, "IMAGE": f"{REPOSITORY}:{TAG}", "BASE": "debian", "BUILDER": "buildah", "ARCHIVE": str(archive)}
    say("node: building the image (two to four minutes)")
    done = subprocess.run(
        ["make", "image"], cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_BUILD_S, check=False
    )
    assert done.returncode == 0, f"make image: exit status {done.returncode}: {done.stdout[-3_000:]}"
    return archive


class Penstock:
    """The installed release."""

    def __init__(self, node: RealNode) -> None:
        self.node = node
        self.plane = node.plane

    def install(self) -> None:
        """`helm install` with the image of the node."""
        self.plane.helm("install", "penstock", str(CHART), "-n", NAMESPACE, "--create-namespace", *_image(TAG))
        self.wait_available()

    def upgrade_everything(self) -> None:
        """`helm upgrade` to another name of the image: it replaces routers, operator, Redis and, by the operator, all workers."""
        self.node.tag(f"{REPOSITORY}:{TAG}", f"{REPOSITORY}:{NEXT_TAG}")
        self.plane.helm("upgrade", "penstock", str(CHART), "-n", NAMESPACE, "--reuse-values", *_image(NEXT_TAG))

    def wait_available(self) -> None:
        """Until every Deployment of the release has all its Pods, of its newest template, and no other Pod is left."""

        def settled() -> bool:
            deployments = self._list(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments")
            counts = [_counts(one) for one in deployments]
            return bool(counts) and all(counts) and len(self.pods()) == sum(one["spec"]["replicas"] for one in deployments)

        wait_until("the release", settled, PATIENCE_S * 2)

    @property
    def url(self) -> str:
        """The router's Service, as clients beside the cluster reach it."""
        spec = accepted(self.plane.client.get(f"/api/v1/namespaces/{NAMESPACE}/services/penstock-router"))["spec"]
        return f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}"

    def pods(self, component: str = "") -> list[Object]:
        """Pods of the release, those that leave included."""
        selector = f"app.kubernetes.io/component={component}" if component else "app.kubernetes.io/component"
        return self._list(f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector=selector)

    def delete_pod(self, pod: Object) -> None:
        """`kubectl delete pod`, without waiting."""
        metadata = pod["metadata"]
        self.plane.kubectl("delete", "pod", "-n", metadata["namespace"], metadata["name"], "--wait=false")

    def wait_replaced(self, pod: Object) -> None:
        """Until this Pod is gone and the release is whole without it."""
        self.wait_gone(pod)
        self.wait_available()

    def wait_gone(self, pod: Object) -> None:
        """Until this Pod is gone."""
        wait_until(f"{pod['metadata']['name']} gone", lambda: self.is_gone(pod), PATIENCE_S * 2)

    def wait_restarted(self, pod: Object) -> None:
        """Until the kubelet has started its container once more, and the Pod is Ready."""
        metadata = pod["metadata"]
        restarts = pod["status"]["containerStatuses"][0]["restartCount"]

        def back() -> bool:
            status = accepted(self.plane.client.get(f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"))["status"]
            ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status["conditions"])
            return bool(ready and status["containerStatuses"][0]["restartCount"] > restarts)

        wait_until(f"{metadata['name']} restarted", back, PATIENCE_S * 2)

    def is_gone(self, pod: Object) -> bool:
        metadata = pod["metadata"]
        answer = self.plane.client.get(f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}")
        return answer.status_code == 404 or (answer.is_success and answer.json()["metadata"]["uid"] != metadata["uid"])

    def metric(self, pods: list[Object], name: str, **labels: str) -> float:
        """Sum of a metric over Pods, asked as a scraper beside the cluster would."""
        total = 0.0
        for pod in pods:
            port = next(port["containerPort"] for port in pod["spec"]["containers"][0]["ports"] if port["name"] == "http")
            text = httpx.get(f"http://{pod['status']['podIP']}:{port}/metrics", timeout=PATIENCE_S, trust_env=False).text
            total += _sum(text, name, labels)
        return total

    def service(self, namespace: str, name: str) -> "ServedModel":
        return ServedModel(self, namespace, name)

    def _list(self, path: str, **query: str) -> list[Object]:
        found: list[Object] = accepted(self.plane.client.get(path, params=query))["items"]
        return found


class ServedModel:
    """One ModelService with its Pods."""

    def __init__(self, penstock: Penstock, namespace: str, name: str) -> None:
        self._plane = penstock.plane
        self._penstock = penstock
        self.namespace = namespace
        self.name = name

    @property
    def path(self) -> str:
        return _SERVICES.format(self.namespace, self.name)

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        return self._plane.kubectl("-n", self.namespace, *words, stdin=stdin)

    def pods(self, pool: str = "") -> list[Object]:
        """Worker Pods, those that leave included."""
        selector = f"{names.SERVICE_LABEL}={self.name}" + (f",{names.POOL_LABEL}={pool}" if pool else "")
        answer = self._plane.client.get(f"/api/v1/namespaces/{self.namespace}/pods", params={"labelSelector": selector})
        found: list[Object] = accepted(answer)["items"]
        return found

    def leaders(self, pool: str) -> list[Object]:
        """The first Pod of each replica: the one that serves."""
        return [pod for pod in self.pods(pool) if pod["metadata"]["labels"][names.RANK_LABEL] == "0"]

    def scale(self, pool: str, replicas: int) -> None:
        """`kubectl scale`."""
        self.kubectl("scale", f"workerpool/{names.pool_object(self.name, pool)}", f"--replicas={replicas}")

    def patch(self, spec: Mapping[str, Any]) -> None:
        """Change the spec; the operator has to roll it out."""
        headers = {"content-type": "application/merge-patch+json"}
        accepted(self._plane.client.patch(self.path, json={"spec": spec}, headers=headers))

    def generations(self) -> set[str]:
        """kv-generations of the Pods there are."""
        return {pod["metadata"]["labels"][names.KV_GENERATION_LABEL] for pod in self.pods()}

    def wait_settled(self, **sizes: int) -> None:
        """Until the pools have these sizes, every replica is ready and of the newest generation, and nothing leaves any more."""
        wait_until(f"{self.name} settled: {sizes}", lambda: self._settled(sizes), PATIENCE_S * 2)

    def _settled(self, sizes: Mapping[str, int]) -> bool:
        service = accepted(self._plane.client.get(self.path))
        status = service.get("status") or {}
        conditions = {one["type"]: one for one in status.get("conditions", ())}
        current = status.get("observedGeneration") == service["metadata"]["generation"]
        pools = {row["name"]: row for row in status.get("pools", ())}
        whole = all(row["desired"] == row["ready"] == len(self.leaders(pool)) and not row["draining"] for pool, row in pools.items())
        sized = all(pools.get(pool, {}).get("desired") == size for pool, size in sizes.items())
        done = all(conditions.get(name, {}).get("status") == wanted for name, wanted in (("Ready", "True"), ("Progressing", "False")))
        return bool(pools) and current and whole and sized and done and len(self.generations()) == 1


def _image(tag: str) -> list[str]:
    return ["--set", f"image.repository={REPOSITORY}", "--set", f"image.tag={tag}"]


def _counts(deployment: Object) -> bool:
    status, wanted = deployment.get("status", {}), deployment["spec"]["replicas"]
    seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return seen and all(status.get(field, 0) == wanted for field in ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"))


def _sum(text: str, name: str, labels: Mapping[str, str]) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
