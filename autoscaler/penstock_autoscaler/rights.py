"""The rights the autoscaler needs in a cluster: rules of a ClusterRole, or of a Role where it looks after one namespace.

The chart's templates are held to this list, and a test runs the autoscaler with exactly these. Sizes go through `/scale` alone: it can
change nothing else of a WorkerPool, and no Pod. Its lease is in Redis.
"""

from typing import Any

from penstock_autoscaler.kube_api import EVENTS, HPAS, MODEL_SERVICES, PODS, WORKER_POOLS, Collection


def _rule(collection: Collection, *verbs: str, subresource: str = "") -> dict[str, Any]:
    group, _, plural = collection
    return {"apiGroups": [group], "resources": [plural + (f"/{subresource}" if subresource else "")], "verbs": sorted(verbs)}


RULES: tuple[dict[str, Any], ...] = (
    _rule(MODEL_SERVICES, "list"),
    _rule(MODEL_SERVICES, "patch", subresource="status"),
    _rule(WORKER_POOLS, "list"),
    _rule(WORKER_POOLS, "update", subresource="scale"),
    _rule(PODS, "list"),
    _rule(HPAS, "list"),
    _rule(EVENTS, "create"),
)
"""Where the ModelServices are."""
