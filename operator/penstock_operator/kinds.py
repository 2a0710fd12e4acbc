"""The kinds of objects the operator reads and writes, and their places in the API.

`api_server` builds paths from them, `handlers` watches them, `cache` keeps them apart. Values only.
"""

from typing import NamedTuple

from penstock_core.api_terms import GROUP, VERSION


class ObjectKind(NamedTuple):
    """One kind: `group` is empty for the core API."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """URL path of the collection (in one namespace or in all), or of one object."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        where = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}{where}/{self.plural}" + (f"/{name}" if name else "")


MODEL_SERVICE = ObjectKind(GROUP, VERSION, "modelservices", "ModelService")
WORKER_POOL = ObjectKind(GROUP, VERSION, "workerpools", "WorkerPool")
POD = ObjectKind("", "v1", "pods", "Pod")
SERVICE = ObjectKind("", "v1", "services", "Service")
SECRET = ObjectKind("", "v1", "secrets", "Secret")
EVENT = ObjectKind("", "v1", "events", "Event")
NETWORK_POLICY = ObjectKind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
DISRUPTION_BUDGET = ObjectKind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
REVISION = ObjectKind("apps", "v1", "controllerrevisions", "ControllerRevision")
LEASE = ObjectKind("coordination.k8s.io", "v1", "leases", "Lease")

OWN = (MODEL_SERVICE, WORKER_POOL)
"""Kinds of ours: every object is watched."""
MADE = (POD, SERVICE, NETWORK_POLICY, DISRUPTION_BUDGET, REVISION)
"""Kinds of others of which we make some: those with our label are watched."""
WATCHED = OWN + MADE
