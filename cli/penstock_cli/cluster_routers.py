"""The routers of a cluster, asked one by one through the API server's proxy to Pods: no port has to be forwarded or opened.

Each router knows its own decisions only, so all are asked. The API server keeps the Authorization header for itself; the admin key
travels in one of its own. It is read from the Secret that the router's Pod names, or given by PENSTOCK_ADMIN_KEY.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from penstock_core.errors import PenstockError

from penstock_cli.cluster import Cluster, ClusterError, Forbidden, Raw
from penstock_cli.router_admin import ADMIN_KEY_ENV

CORE = "/api/v1"
USUAL_NAMESPACE = "penstock-system"
ADMIN_KEY_HEADER = "x-penstock-admin-key"


def selector(component: str) -> str:
    """Labels of the Pods of one part of Penstock, as the chart sets them."""
    return f"app.kubernetes.io/part-of=penstock,app.kubernetes.io/component={component}"


class NoRouters(PenstockError):
    """No router's Pod was found, or those of several installations; the message says what to do."""


class RouterPod(NamedTuple):
    """One router."""

    namespace: str
    name: str
    port: int
    ready: bool
    key_from: tuple[str, str] | None
    """Name and key of the Secret with the admin key."""

    @property
    def proxy(self) -> str:
        return f"{CORE}/namespaces/{self.namespace}/pods/{self.name}:{self.port}/proxy"


class Answers(NamedTuple):
    """What the routers said, and why others said nothing."""

    said: Mapping[str, Raw]
    """By the Pod's name."""
    silent: Mapping[str, str]


def parts(cluster: Cluster, component: str) -> list[Raw]:
    """The Pods of one part of Penstock: in the namespace of the command line, else wherever we may look. Raises ClusterError."""
    if cluster.namespace is not None:
        return cluster.every(f"{CORE}/namespaces/{cluster.namespace}/pods", selector(component))
    return cluster.every_seen(CORE, "pods", [cluster.own_namespace, USUAL_NAMESPACE], selector(component))


def routers(cluster: Cluster) -> list[RouterPod]:
    """Every router of the one installation. Raises NoRouters, ClusterError."""
    found = [router_pod(raw) for raw in parts(cluster, "router")]
    places = sorted({router.namespace for router in found})
    if len(places) > 1:
        raise NoRouters(f"routers run in {', '.join(places)}; choose one with --namespace")
    if not found:
        where = f"namespace {cluster.namespace!r} of " if cluster.namespace else ""
        raise NoRouters(
            f"no router runs in {where}context {cluster.context!r} ({cluster.server}): no Pod has the labels {selector('router')}; "
            "is the chart installed? `penstock doctor --cluster` says more"
        )
    return found


def router_pod(raw: Mapping[str, Any]) -> RouterPod:
    container = raw["spec"]["containers"][0]
    port = next((port["containerPort"] for port in container.get("ports") or () if port.get("name") == "http"), 8000)
    key = next((one["valueFrom"]["secretKeyRef"] for one in container.get("env") or () if _names_key(one)), None)
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in raw.get("status", {}).get("conditions") or ())
    metadata = raw["metadata"]
    return RouterPod(metadata["namespace"], metadata["name"], port, ready, (key["name"], key["key"]) if key else None)


def ask_all(cluster: Cluster, asked: Sequence[RouterPod], path: str, query: Mapping[str, str | int] | None = None) -> Answers:
    """GET `path` of each. Raises ClusterError with the first one's words where none answers."""
    keys: dict[tuple[str, tuple[str, str]], str] = {}
    said: dict[str, Raw] = {}
    silent: dict[str, str] = {}
    for router in asked:
        try:
            said[router.name] = cluster.get(router.proxy + path, query, _headers(cluster, router, keys))
        except ClusterError as error:
            silent[router.name] = str(error)
    if not said:
        raise ClusterError(f"no router answers; {next(iter(silent))}: {next(iter(silent.values()))}")
    return Answers(said, silent)


def _headers(cluster: Cluster, router: RouterPod, known: dict[tuple[str, tuple[str, str]], str]) -> dict[str, str]:
    if given := os.environ.get(ADMIN_KEY_ENV):
        return {ADMIN_KEY_HEADER: given}
    if router.key_from is None:
        return {}
    place = (router.namespace, router.key_from)
    if place not in known:
        name, key = router.key_from
        try:
            secret = cluster.get(f"{CORE}/namespaces/{router.namespace}/secrets/{name}")
        except Forbidden as error:
            raise Forbidden(f"{error}; ask for the right to get this Secret, or set {ADMIN_KEY_ENV}") from None
        known[place] = base64.b64decode((secret.get("data") or {}).get(key, "")).decode().strip()
    return {ADMIN_KEY_HEADER: known[place]}


def _names_key(env: Mapping[str, Any]) -> bool:
    return env.get("name") == ADMIN_KEY_ENV and "secretKeyRef" in (env.get("valueFrom") or {})
