"""The operator as a process, beside a real API server, under the account and the rights that the chart gives it.

Nothing may be denied to that account, in no test: the rights are enough for everything that the tests do.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml
from control_plane import ControlPlane, Object, accepted, wait_until
from penstock_cli.child import Child

FLEET_TOKEN = "f" * 32
SYSTEM = "penstock-system"
ACCOUNT = "penstock-operator"
_INSTALL = Path(__file__).parents[2] / "manifests" / "install.yaml"
_RIGHTS = ("Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


def chart_account(plane: ControlPlane, lease_namespace: str = SYSTEM) -> Path:
    """Makes the chart's ServiceAccount with its rights and gives a kubeconfig of it. Where a test keeps its Lease in another
    namespace than the chart does, the right to it is given there."""
    for manifest in yaml.safe_load_all(_INSTALL.read_text(encoding="utf-8")):
        if manifest["kind"] not in _RIGHTS:
            continue
        if manifest["kind"] in ("Role", "RoleBinding"):
            manifest["metadata"]["namespace"] = lease_namespace
        accepted(plane.apply(manifest))
    return plane.service_account_kubeconfig(SYSTEM, ACCOUNT)


def denied(events: list[Object]) -> set[tuple[str, ...]]:
    """Verb, group, resource, subresource and namespace of what was refused for want of a right, by audit events, and never allowed:
    an API server that has only just started refuses for a moment what it allows as soon as it has read the roles."""
    refused, allowed = set(), set()
    for event in events:
        what = event.get("objectRef", {})
        right = (event["verb"], *(what.get(field, "") for field in ("apiGroup", "resource", "subresource", "namespace")))
        status = event.get("responseStatus", {})
        forbidden = event.get("annotations", {}).get("authorization.k8s.io/decision") == "forbid"
        # A server-side apply that would make an object is allowed as a patch and then refused as a create.
        missing = forbidden or (status.get("code") == 403 and " cannot " in status.get("message", ""))
        (refused if missing else allowed).add(right)
    return refused - allowed


class OperatorProcess:
    """One `penstock operator`: started, watched, ended."""

    def __init__(
        self,
        plane: ControlPlane,
        folder: Path,
        kubeconfig: Path | None = None,
        redis_url: str = "redis://redis:6379/0",
        **settings: object,
    ) -> None:
        self.url_file = folder / "url"
        self.log_path = folder / "log"
        told = {"host": "127.0.0.1", "port": 0, "announce_path": str(self.url_file), "image": "penstock:1"} | settings
        told["kubeconfig"] = str(kubeconfig or chart_account(plane, str(settings.get("namespace", SYSTEM))))
        file = folder / "settings.json"
        file.write_text(json.dumps(told), encoding="utf-8")
        secrets = {"PENSTOCK_FLEET_TOKEN": FLEET_TOKEN, "PENSTOCK_REDIS_URL": redis_url}
        self.child = Child(
            "operator",
            [sys.executable, "-m", "penstock_cli.main", "operator", "--config", str(file)],
            self.log_path,
            environ={**os.environ, **secrets},
        )

    @property
    def url(self) -> str:
        return wait_until("the operator's URL", lambda: self.url_file.exists() and self.url_file.read_text().strip())

    def wait_leading(self) -> None:
        """Until it leads and everything is listed."""

        def leads() -> bool:
            answer = httpx.get(f"{self.url}/readyz")
            return answer.is_success and bool(answer.json()["leading"])

        wait_until(f"the operator leads (log: {self.log_path.read_text()[-2000:]})", leads)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all label sets that match."""
        total = 0.0
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(f'{label}="{value}"' in line for label, value in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    def logged(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines() if line.startswith("{")]


@pytest.fixture
def start_operator(tmp_path: Path) -> Iterator[Callable[..., OperatorProcess]]:
    """Starts an operator at each call: `start_operator(plane, namespace=…, watch_namespace=…)`; all end with the test."""
    planes: list[tuple[ControlPlane, int]] = []  # with what had been audited before: other tests are refused on purpose
    with ExitStack() as stack:
        numbers = iter(range(100))

        def start(plane: ControlPlane, **settings: object) -> OperatorProcess:
            planes.append((plane, len(plane.audited())))
            folder = tmp_path / f"operator-{next(numbers)}"
            folder.mkdir()
            process = OperatorProcess(plane, folder, **settings)  # type: ignore[arg-type]
            stack.callback(process.child.stop, 10.0)
            return process

        yield start
    assert [denied(plane.audited()[before:]) for plane, before in planes] == [set()] * len(planes)
