"""A real Kubernetes control plane on loopback: etcd, API server, controllers, scheduler, and kwok to play nodes.

Every ControlPlane has ports and a folder of its own, so any number run side by side; its processes end with it, or with the
process that started it (Linux), and its folder goes. It checks nothing: tests do. `python -m control_plane` runs one by hand.
"""

import base64
import json
import random
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import httpx
import yaml
from component_flags import API_SERVER, CONTROLLERS, ETCD, KWOK, LOOPBACK, SCHEDULER, Place, flags_of
from go_programs import Programs, programs
from penstock_cli.child import Child, ChildFailed

Found = TypeVar("Found")
Object = dict[str, Any]

PATIENCE_S = 120.0
"""For every wait: thirty times what a start takes on an idle machine, and no wait is longer than what it waits for."""
FAKE_NODE = {"kwok.x-k8s.io/node": "fake"}
"""Annotation of the nodes that kwok plays."""

_USERS = {"admin": "system:masters", f"system:{CONTROLLERS}": "", f"system:{SCHEDULER}": ""}
_NO_USERS: Mapping[str, str] = MappingProxyType({})
_STARTS = 3
_POLL_S = 0.05


def wait_until(what: str, found: Callable[[], Found | None], timeout_s: float = PATIENCE_S) -> Found:
    """The first answer of `found` that is true. Raises TimeoutError that names `what` when there is none in time."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        answer = found()
        if answer:
            return answer
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(_POLL_S)


def accepted(answer: httpx.Response) -> Object:
    """The object in an answer. Raises AssertionError with the API server's own words where it refused."""
    if not answer.is_success:
        raise AssertionError(
            f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.json().get('message', answer.text)}"
        )
    found: Object = answer.json()
    return found


def refused(answer: httpx.Response) -> str:
    """Why the API server did not take it. Raises AssertionError where it did."""
    if answer.is_success:
        raise AssertionError(f"{answer.request.method} {answer.request.url.path}: {answer.status_code}, wanted a refusal")
    said: str = answer.json()["message"]
    return said


def too_early(event: Object, starts: Sequence[tuple[str, str]]) -> bool:
    """Whether an audit event's request came between one of the starts' two times: begun, ready."""
    return any(began <= event["requestReceivedTimestamp"] < ready for began, ready in starts)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class ControlPlane:
    """One control plane; `start` and `close`, or a context manager. Components may be stopped and started again by name.

    `url`, `kubeconfig` and `client` (user `admin`, who may do everything) are there after `start` and stay the same.
    """

    def __init__(
        self,
        binaries: Programs,
        crds: Sequence[Path] = (),
        *,
        address: str = LOOPBACK,
        users: Mapping[str, str] = _NO_USERS,
        parent: Path | None = None,
    ) -> None:
        """`address`: where the API server listens. `users`: the group (or an empty text) of each further user. `parent`: of its folder."""
        self.binaries = binaries
        self._crds = crds
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-cluster-", dir=parent))
        self._users = {**_USERS, **users}
        self._tokens = {user: secrets.token_hex(16) for user in self._users}
        self._children: dict[str, Child] = {}
        self._place = Place(self.folder, 0, 0, 0, address)
        self._resources: dict[tuple[str, str], Object] = {}
        self._starts: list[tuple[str, str]] = []  # of the API server: when begun and when ready, as audit events write times
        self.client = httpx.Client()

    @property
    def url(self) -> str:
        return self._place.url

    @property
    def kubeconfig(self) -> Path:
        return self.kubeconfig_of("admin")

    def kubeconfig_of(self, user: str) -> Path:
        """A kubeconfig of one of the static users."""
        return self._place.kubeconfig(user)

    @property
    def has_controllers(self) -> bool:
        """Whether there are controllers: they make default accounts, collect garbage and bring Deployments to life."""
        return self.binaries.has(CONTROLLERS)

    def start(self) -> None:
        """Start everything that the programs allow and wait until objects can be made. Raises ChildFailed or TimeoutError."""
        for attempt in range(_STARTS):
            try:
                self._start_api_server()
                break
            except ChildFailed as failed:  # a port may have been taken between our look and its use
                self._end_all()
                shutil.rmtree(self.folder / "etcd", ignore_errors=True)
                if attempt == _STARTS - 1 or "address already in use" not in str(failed):
                    raise
        for user in self._users:
            self._write_kubeconfig(self._place.kubeconfig(user), user, self._tokens[user])
        self.client = self.client_of(self._tokens["admin"])
        for path in self._crds:  # before the controllers, which look for new kinds only every half minute
            self._install_crd(path)
        for name in (CONTROLLERS, SCHEDULER, KWOK):
            if self.binaries.has(name):
                self.start_component(name)
        if self.has_controllers:
            wait_until(
                "the default ServiceAccount", lambda: self.client.get("/api/v1/namespaces/default/serviceaccounts/default").is_success
            )

    def start_component(self, name: str) -> None:
        """Start it, again after `stop_component`, with the same flags and port; returns when it is ready (API server, etcd)."""
        flags = flags_of(name, self._place, with_controllers=self.has_controllers)
        began = _now()
        self._children[name] = Child(name, [str(self.binaries.path(name)), *flags], self.folder / f"{name}.log")
        ready = {ETCD: self._etcd_answers, API_SERVER: self._api_server_answers}.get(name)
        if ready is not None:
            wait_until(f"{name} (log: {self.folder / name}.log)", lambda: self._failed_or(name, ready))
        if name == API_SERVER:
            self._starts.append((began, _now()))

    def stop_component(self, name: str, timeout_s: float = 0.0) -> None:
        """SIGTERM, then SIGKILL after `timeout_s`; 0 is a crash."""
        self._children.pop(name).stop(timeout_s)

    def pid(self, component: str) -> int:
        """For signals (SIGSTOP and SIGCONT make a component hang) and for looking at its CPU time."""
        return self._children[component].pid

    def close(self) -> None:
        """End all processes and remove the folder. Closing twice does nothing."""
        self.client.close()
        self._end_all()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "ControlPlane":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # -- access

    def client_of(self, token: str) -> httpx.Client:
        """An HTTP client that speaks as the token's owner."""
        context = ssl.create_default_context(cafile=self._place.authority)
        return httpx.Client(base_url=self.url, verify=context, headers={"authorization": f"Bearer {token}"}, timeout=PATIENCE_S)

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """A kubeconfig that speaks as a ServiceAccount, with a token of one hour."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3_600}}
        answer = accepted(self.client.post(path, json=asked))
        target = self.folder / f"{namespace}.{name}.kubeconfig"
        self._write_kubeconfig(target, f"{namespace}:{name}", answer["status"]["token"], namespace)
        return target

    def audited(self) -> list[Object]:
        """What the API server wrote down of Penstock's own accounts (audit-policy.yaml), oldest first, once it was ready: before that
        it has not read the roles yet and refuses everybody everything."""
        log = self._place.audit_log
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        return [event for event in map(json.loads, (line for line in lines if line.endswith("}"))) if not too_early(event, self._starts)]

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True, kubeconfig: Path | None = None) -> str:
        """What kubectl prints on both streams together. Raises AssertionError with it when it fails, unless `check` is false."""
        return self._run("kubectl", words, stdin, check, kubeconfig or self.kubeconfig)

    def helm(self, *words: str, check: bool = True) -> str:
        """The same with Helm; its own files stay in the folder. Raises NoPrograms where there is none."""
        return self._run("helm", words, None, check, self.kubeconfig)

    def apply(self, manifest: Object, manager: str = "tests", *, force: bool = False, status: bool = False) -> httpx.Response:
        """Server-side apply of one object under its own name; the caller judges the answer."""
        query = {"fieldManager": manager, "force": str(force).lower(), "fieldValidation": "Strict"}
        path = self.path_of(manifest) + ("/status" if status else "")
        return self.client.patch(path, params=query, content=json.dumps(manifest), headers={"content-type": "application/apply-patch+yaml"})

    def path_of(self, manifest: Mapping[str, Any]) -> str:
        """`/apis/<group>/<version>/namespaces/<namespace>/<plural>/<name>`; the plural as discovery says."""
        version, kind = manifest["apiVersion"], manifest["kind"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if (version, kind) not in self._resources:
            for one in accepted(self.client.get(root))["resources"]:
                if "/" not in one["name"]:
                    self._resources[version, one["kind"]] = one
        found = self._resources[version, kind]
        metadata = manifest["metadata"]
        scope = f"/namespaces/{metadata['namespace']}" if found["namespaced"] else ""
        return f"{root}{scope}/{found['name']}/{metadata['name']}"

    def add_fake_node(self, name: str, **capacity: str) -> None:
        """A node that kwok plays: pods bound to it run and get Ready; capacity as `cpu="64"`, or by `**{"nvidia.com/gpu": "8"}`."""
        self.binaries.path("kwok")
        sizes = {"cpu": "64", "memory": "512Gi", "pods": "250", **capacity}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "annotations": FAKE_NODE, "labels": {"kubernetes.io/hostname": name, "type": "kwok"}},
            "status": {"capacity": sizes, "allocatable": sizes},
        }
        accepted(self.client.post("/api/v1/nodes", json=node))
        wait_until(f"node {name} without taints", lambda: "taints" not in self.client.get(f"/api/v1/nodes/{name}").json()["spec"])

    # -- processes

    def _start_api_server(self) -> None:
        self._place = Place(self.folder, *_free_ports(3), self._place.address)
        lines = [f"{self._tokens[user]},{user},{user}" + (f',"{group}"' if group else "") for user, group in self._users.items()]
        self._place.tokens.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.start_component(ETCD)
        self.start_component(API_SERVER)

    def _install_crd(self, path: Path) -> None:
        crd: Object = yaml.safe_load(path.read_text(encoding="utf-8"))
        accepted(self.apply(crd))
        served = f"/apis/{crd['spec']['group']}/{crd['spec']['versions'][0]['name']}/{crd['spec']['names']['plural']}"
        wait_until(f"{path.name} served", lambda: self.client.get(served).is_success)

    def _etcd_answers(self) -> bool:
        try:
            return httpx.get(f"{self._place.etcd_url}/health", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def _api_server_answers(self) -> bool:
        try:
            with self.client_of(self._tokens["admin"]) as client:
                return client.get("/readyz", timeout=5).is_success
        except (httpx.HTTPError, OSError):  # no certificate yet, nobody listens yet
            return False

    def _failed_or(self, name: str, ready: Callable[[], bool]) -> bool:
        if self._children[name].ended() is not None:
            raise self._children[name].failure()
        return ready()

    def _end_all(self) -> None:
        for name in reversed(list(self._children)):
            self.stop_component(name)

    def _write_kubeconfig(self, path: Path, user: str, token: str, namespace: str = "default") -> None:
        authority = base64.b64encode(self._place.authority.read_bytes()).decode()
        context = {"cluster": "tests", "user": user, "namespace": namespace}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": {"server": self.url, "certificate-authority-data": authority}}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "tests", "context": context}],
            "current-context": "tests",
        }
        path.write_text(json.dumps(content), encoding="utf-8")

    def _run(self, program: str, words: tuple[str, ...], stdin: str | None, check: bool, kubeconfig: Path) -> str:
        home = str(self.folder)
        done = subprocess.run(
            [str(self.binaries.path(program)), *words],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S * 2,
            env={"PATH": "/usr/bin:/bin", "HOME": home, "KUBECONFIG": str(kubeconfig), "TMPDIR": tempfile.gettempdir()},
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{program} {' '.join(words)}: exit status {done.returncode}: {done.stdout}")
        return done.stdout


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below the range from which the kernel takes ports for outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def main() -> int:
    """Run one with Penstock's CRDs until Ctrl-C, and print the line that points kubectl at it."""
    crds = sorted((Path(__file__).parents[2] / "manifests" / "crds").glob("*.yaml"))
    with ControlPlane(programs(lambda line: print(line, file=sys.stderr)), crds) as plane:
        print(f"export KUBECONFIG={plane.kubeconfig} PATH={plane.binaries.folder}:$PATH", flush=True)
        told = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, told)  # only now: the components would have inherited it
        signal.sigwait(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
