"""The API server as the CLI asks it: objects, lists, reviews of rights, and what a Pod answers through the server's proxy.

`cluster_status`, `cluster_explain` and `cluster_doctor` use it. It changes nothing in the cluster. Errors say which context and
which server.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from penstock_core.errors import PenstockError

from penstock_cli.kube_access import Access, Aim, reach

Raw = dict[str, Any]

_PAGE = 500


class ClusterError(PenstockError):
    """The API server did not do it."""


class Forbidden(ClusterError):
    """Our rights do not allow it."""


class NotThere(ClusterError):
    """No such object, or no such kind."""


class Cluster:
    """One API server, asked as one user. `namespace` is what the command line named, else None."""

    def __init__(self, access: Access, namespace: str | None) -> None:
        self._access = access
        self.namespace = namespace

    @property
    def context(self) -> str:
        return self._access.context

    @property
    def server(self) -> str:
        return self._access.server

    @property
    def own_namespace(self) -> str:
        """The context's."""
        return self._access.namespace

    def get(self, path: str, query: Mapping[str, str | int] | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """GET as JSON. Raises Forbidden, NotThere, ClusterError."""
        return self._ask("GET", path, query, None, headers)

    def every(self, path: str, selector: str = "") -> list[Raw]:
        """Every object of a collection. Raises as `get`."""
        query: dict[str, str | int] = {"limit": _PAGE} | ({"labelSelector": selector} if selector else {})
        items: list[Raw] = []
        while True:
            page = self.get(path, query)
            items += page["items"]
            if not page["metadata"].get("continue"):
                return items
            query["continue"] = page["metadata"]["continue"]

    def every_seen(self, group: str, plural: str, namespaces: Sequence[str], selector: str = "") -> list[Raw]:
        """Of all namespaces; where that is forbidden, of those named which may be listed. Raises Forbidden when none may."""
        try:
            return self.every(f"{group}/{plural}", selector)
        except Forbidden as everywhere:
            found: list[Raw] = []
            allowed = False
            for namespace in dict.fromkeys(namespaces):
                try:
                    found += self.every(f"{group}/namespaces/{namespace}/{plural}", selector)
                    allowed = True
                except Forbidden:
                    continue
            if not allowed:
                raise everywhere from None
            return found

    def may(self, attributes: Mapping[str, str], user: str = "") -> bool:
        """Whether we, or `user`, may do this. `attributes`: verb, group, resource and so on. Raises as `get`."""
        kind = "SubjectAccessReview" if user else "SelfSubjectAccessReview"
        spec = {"resourceAttributes": dict(attributes)} | ({"user": user} if user else {})
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        answer = self._ask("POST", f"/apis/authorization.k8s.io/v1/{kind.lower()}s", None, body, None)
        return bool(answer["status"].get("allowed"))

    def _ask(
        self, method: str, path: str, query: Mapping[str, str | int] | None, body: Raw | None, headers: Mapping[str, str] | None
    ) -> Any:
        where = f"context {self.context!r} ({self.server})"
        try:
            answer = self._access.client.request(method, path, params=query, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise ClusterError(f"the API server of {where} does not answer: {error or type(error).__name__}") from None
        try:
            said = answer.json()
        except ValueError:
            said = {"message": answer.text[:300]}
        if answer.is_success:
            return said
        words = said.get("message") or said.get("detail") or f"status {answer.status_code}"
        if answer.status_code == 401 and said.get("kind") == "Status":
            raise ClusterError(f"the API server of {where} does not know us: {words}; renew the kubeconfig's credentials")
        if answer.status_code == 403:
            raise Forbidden(f"{where}: {words}")
        if answer.status_code == 404:
            raise NotThere(f"{where}: {words}")
        raise ClusterError(f"{where}: {method} {path}: {words}")


def open_cluster(aim: Aim) -> Cluster:
    """The cluster that the command line means. Raises NoCluster."""
    return Cluster(reach(aim), aim.namespace)
