"""The API server as the operator uses it: apply, delete by uid, list, read, status; each one request with a deadline.

The `kubernetes` package knows how to find the server and to log in (service account, kubeconfig, exec plugins, token renewal); the
requests themselves are JSON over its TLS context. Errors become one of four, each with its one reaction.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import load_incluster_config, load_kube_config

from penstock_operator.difference import kept
from penstock_operator.kinds import ObjectKind
from penstock_operator.names import FIELD_MANAGER

_TIMEOUT_S = 30.0
_CONNECTIONS = 64
_PAGE = 500


class ApiError(Exception):
    """The server could not do it now: try again later, with back-off."""


class Conflict(ApiError):
    """The object is not the one that was meant, or has changed since: look again."""


class Gone(ApiError):
    """There is no such object."""


class Refused(ApiError):
    """The server will not do it as it stands: tell the user."""


class NamespaceTerminating(ApiError):
    """Nothing more can be made in this namespace: leave it alone."""


async def login(kubeconfig: str, environ: Mapping[str, str]) -> Configuration:
    """Where the server is and how to log in. Raises kubernetes.aio.config.ConfigException."""
    configuration = Configuration()
    if not kubeconfig and "KUBERNETES_SERVICE_HOST" in environ:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    else:
        await load_kube_config(  # type: ignore[no-untyped-call]
            config_file=kubeconfig or None, client_configuration=configuration, persist_config=False
        )
    return configuration


async def new_session(configuration: Configuration, *, connections: int, **options: Any) -> aiohttp.ClientSession:
    """A session of the running event loop that trusts the server; requests must carry `authorization` as well."""
    rest = RESTClientObject(configuration)
    connector = aiohttp.TCPConnector(limit=connections, ssl=rest.ssl_context)
    return aiohttp.ClientSession(connector=connector, trust_env=True, **options)


async def authorization(configuration: Configuration) -> dict[str, str]:
    """The header that says who we are, with a fresh token."""
    key = await configuration.get_api_key_with_prefix("BearerToken", "authorization")
    return {"Authorization": key} if key else {}


class ApiServer:
    """See the module. `open` in the event loop that uses it; `requests` counts by verb."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._session: aiohttp.ClientSession | None = None
        self.requests: dict[str, int] = {}

    async def open(self) -> None:
        self._session = await new_session(self._configuration, connections=_CONNECTIONS)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def apply(
        self, kind: ObjectKind, body: Mapping[str, Any], *, manager: str = FIELD_MANAGER, subresource: str = ""
    ) -> dict[str, Any]:
        """Server-side apply, taking fields over from others; gives the object as it is then."""
        metadata = body["metadata"]
        path = kind.path(metadata["namespace"], metadata["name"]) + (f"/{subresource}" if subresource else "")
        query = {"fieldManager": manager, "force": "true"}
        return await self._request("PATCH", path, query, body, content_type="application/apply-patch+yaml")

    async def delete(self, kind: ObjectKind, namespace: str, name: str, uid: str) -> dict[str, Any]:
        """Delete this very object; gives it as it is then (leaving), or a Status. Raises Gone, Conflict."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        return await self._request("DELETE", kind.path(namespace, name), {}, body)

    async def create(self, kind: ObjectKind, namespace: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._request("POST", kind.path(namespace), {}, body)

    async def replace(self, kind: ObjectKind, namespace: str, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Write the whole object, if it is still of the resourceVersion in `body`. Raises Conflict."""
        return await self._request("PUT", kind.path(namespace, name), {}, body)

    async def read(self, kind: ObjectKind, namespace: str, name: str) -> dict[str, Any] | None:
        """The object; None if there is none."""
        try:
            return await self._request("GET", kind.path(namespace, name), {}, None)
        except Gone:
            return None

    async def who_am_i(self) -> dict[str, Any]:
        """The userInfo that the server takes us for: `username`, and for a ServiceAccount its `uid`."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = await self._request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {}, body)
        return dict(answer.get("status", {}).get("userInfo", {}))

    async def list(self, kind: ObjectKind, namespace: str, selector: str) -> tuple[list[dict[str, Any]], int]:
        """Every object (of one namespace, or of all for ""), as `difference.kept` leaves it, and the version of the listing."""
        items: list[dict[str, Any]] = []
        query = {"limit": str(_PAGE)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self._request("GET", kind.path(namespace or None), query, None)
            items += [kept({"apiVersion": kind.api_version, "kind": kind.kind, **item}, kind) for item in page["items"]]
            more = page["metadata"].get("continue")
            if not more:
                return items, int(page["metadata"]["resourceVersion"])
            query = {**query, "continue": more}

    async def _request(
        self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        if self._session is None:
            raise RuntimeError("the API client is not open")
        self.requests[method] = self.requests.get(method, 0) + 1
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Content-Type": content_type, "Accept": "application/json", **await authorization(self._configuration)}
        data = None if body is None else msgspec.json.encode(body)
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        try:
            async with self._session.request(method, url, headers=headers, data=data, timeout=timeout) as response:
                answer = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(f"{method} {path}: {type(error).__name__}: {error}") from None
        try:
            said = msgspec.json.decode(answer)
        except msgspec.DecodeError:
            said = {"message": answer[:500].decode(errors="replace")}
        if status < 300:
            return dict(said)
        raise error_of(status, said, f"{method} {path}")


def error_of(status: int, said: Mapping[str, Any], what: str) -> ApiError:
    """The error for a Status object."""
    message = str(said.get("message") or f"status {status}")
    causes = (said.get("details") or {}).get("causes") or ()
    if status == 403 and any(cause.get("reason") == "NamespaceTerminating" for cause in causes):
        return NamespaceTerminating(message)
    if status == 404:
        return NamespaceTerminating(message) if (said.get("details") or {}).get("kind") == "namespaces" else Gone(message)
    if status == 409:
        return Conflict(message)
    if 400 <= status < 500 and status not in (401, 408, 429):
        return Refused(message)
    return ApiError(f"{what}: {message}")
