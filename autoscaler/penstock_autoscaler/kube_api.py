"""The API server as the autoscaler uses it: list, set a scale, apply a status, post an event; each one request with a deadline.

The one module here that imports `kubernetes`, which knows where the server is and how to log in (service account, kubeconfig, tokens
that must be renewed). Objects stay JSON. `kube_scope` and `kube_fleet` call it.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from penstock_core.api_terms import GROUP, VERSION

from penstock_autoscaler.ports import ScaleFailed

Raw = Mapping[str, Any]

MANAGER = "penstock-autoscaler"
"""Field manager of everything it writes, and reporter of its events."""
MODEL_SERVICES, WORKER_POOLS = (GROUP, VERSION, "modelservices"), (GROUP, VERSION, "workerpools")
PODS, EVENTS = ("", "v1", "pods"), ("", "v1", "events")
HPAS = ("autoscaling", "v2", "horizontalpodautoscalers")

Collection = tuple[str, str, str]
"""Group (empty: core), version, plural."""

_TIMEOUT_S = 15.0
_PAGE = 500


class Changed(ScaleFailed):
    """The object has changed since it was read; look again."""


class Gone(ScaleFailed):
    """There is no such object, or no such kind."""


async def login(kubeconfig: str, environ: Mapping[str, str]) -> Configuration:
    """Where the server is and how to log in: the Pod's service account, else a kubeconfig. Raises ScaleFailed."""
    configuration = Configuration()
    try:
        if not kubeconfig and "KUBERNETES_SERVICE_HOST" in environ:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await load_kube_config(  # type: ignore[no-untyped-call]
                config_file=kubeconfig or None, client_configuration=configuration, persist_config=False
            )
    except (ConfigException, OSError) as error:
        raise ScaleFailed(f"kubeconfig is {kubeconfig or '$KUBECONFIG'!r}; it cannot be used: {error}") from None
    return configuration


def path_of(collection: Collection, namespace: str, name: str = "") -> str:
    """URL path of a collection (in one namespace, or in all for "") or of one object."""
    group, version, plural = collection
    root = f"/apis/{group}/{version}" if group else f"/api/{version}"
    return f"{root}{f'/namespaces/{namespace}' if namespace else ''}/{plural}{f'/{name}' if name else ''}"


class KubeApi:
    """See the module. Make it in the event loop that uses it. Every call raises ScaleFailed."""

    def __init__(self, configuration: Configuration) -> None:
        self._client = ApiClient(configuration)

    async def aclose(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def every(self, collection: Collection, namespace: str, selector: str = "") -> list[Raw]:
        """Every object of a collection, page by page."""
        items: list[Raw] = []
        query = {"limit": str(_PAGE)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self._request("GET", path_of(collection, namespace), query)
            items += page["items"]
            more = (page.get("metadata") or {}).get("continue")
            if not more:
                return items
            query["continue"] = more

    async def set_scale(self, pool: Raw, replicas: int) -> None:
        """Ask for so many replicas of a WorkerPool, if it is still as it was read. Raises Changed."""
        metadata = {key: pool["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
        body = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": {"replicas": replicas}}
        path = path_of(WORKER_POOLS, metadata["namespace"], metadata["name"]) + "/scale"
        await self._request("PUT", path, {"fieldManager": MANAGER}, body)

    async def apply_conditions(self, service: Raw, conditions: list[dict[str, Any]]) -> None:
        """Make these our conditions of a ModelService; those of others stay."""
        metadata = {key: service["metadata"][key] for key in ("name", "namespace")}
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "ModelService",
            "metadata": metadata,
            "status": {"conditions": conditions},
        }
        path = path_of(MODEL_SERVICES, metadata["namespace"], metadata["name"]) + "/status"
        await self._request("PATCH", path, {"fieldManager": MANAGER, "force": "true"}, body, "application/apply-patch+yaml")

    async def post_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        await self._request("POST", path_of(EVENTS, namespace), {}, body)

    async def _request(
        self, method: str, path: str, query: Mapping[str, str], body: Any = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                asked = await self._client.param_serialize(
                    method=method,
                    resource_path=path,
                    query_params=list(query.items()),
                    header_params=headers,
                    body=body,
                    auth_settings=["BearerToken"],
                )
                answer = await self._client.call_api(*asked, _request_timeout=_TIMEOUT_S)
                text = await answer.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, ConfigException, OSError, TimeoutError) as error:
            raise ScaleFailed(f"{method} {path}: {type(error).__name__}: {error}") from None
        try:
            said = dict(msgspec.json.decode(text))
        except (msgspec.DecodeError, TypeError, ValueError):
            said = {"message": text[:300].decode(errors="replace")}
        if answer.status < 300:
            return said
        error_class = {404: Gone, 409: Changed}.get(answer.status, ScaleFailed)
        raise error_class(f"{method} {path}: {said.get('message') or f'status {answer.status}'}")
