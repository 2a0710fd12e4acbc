"""The rights the operator needs, no wildcard among them: rules of a ClusterRole, or of a Role where it looks after one namespace.

The chart's templates are held to this list, and a test runs the operator with exactly these. The Lease is in the operator's own
namespace. Secrets are read and written one by one: it never lists or watches them.
"""

from typing import Any

from penstock_operator.kinds import (
    DISRUPTION_BUDGET,
    EVENT,
    LEASE,
    MODEL_SERVICE,
    NETWORK_POLICY,
    POD,
    REVISION,
    SECRET,
    SERVICE,
    WORKER_POOL,
    ObjectKind,
)
from penstock_operator.leader import LEASE_NAME

_SEEN = ("list", "watch")
_APPLIED = ("create", "patch")


def _rule(kind: ObjectKind, *verbs: str, subresource: str = "") -> dict[str, Any]:
    return {"apiGroups": [kind.group], "resources": [kind.plural + (f"/{subresource}" if subresource else "")], "verbs": sorted(verbs)}


RULES: tuple[dict[str, Any], ...] = (
    _rule(MODEL_SERVICE, *_SEEN),
    _rule(MODEL_SERVICE, "update", subresource="finalizers"),  # for owner references that block deletion
    _rule(MODEL_SERVICE, "patch", subresource="status"),
    _rule(WORKER_POOL, *_SEEN, *_APPLIED, "delete"),
    _rule(WORKER_POOL, "update", subresource="finalizers"),
    _rule(WORKER_POOL, "patch", subresource="status"),
    _rule(POD, *_SEEN, *_APPLIED, "delete"),
    _rule(SERVICE, *_SEEN, *_APPLIED),
    _rule(NETWORK_POLICY, *_SEEN, *_APPLIED),
    _rule(DISRUPTION_BUDGET, *_SEEN, *_APPLIED, "delete"),
    _rule(REVISION, *_SEEN, *_APPLIED, "delete"),
    _rule(SECRET, "get", *_APPLIED),
    _rule(EVENT, "create"),
)
"""Where the ModelServices are."""

LEASE_RULES: tuple[dict[str, Any], ...] = (
    _rule(LEASE, "create"),  # a name cannot be asked for when there is none yet
    _rule(LEASE, "get", "update") | {"resourceNames": [LEASE_NAME]},
)
"""In the operator's own namespace."""


def own_secret_rule(name: str) -> dict[str, Any]:
    """To fill the installation's Secret there, where the chart makes it."""
    return _rule(SECRET, "get", "update") | {"resourceNames": [name]}
