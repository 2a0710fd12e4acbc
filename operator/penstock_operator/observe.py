"""What is, for one ModelService: its objects as the cache has them, in one frozen value.

`reconcile` takes it before each plan. Whatever the planner must know and the cache cannot tell (loads, drains, the Secret) is
handed in. It asks nobody.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from penstock_operator import names
from penstock_operator.cache import Cache, Key
from penstock_operator.gangs import Pod, read_pod
from penstock_operator.kinds import DISRUPTION_BUDGET, MODEL_SERVICE, NETWORK_POLICY, POD, REVISION, SERVICE, WORKER_POOL, ObjectKind


class Report(msgspec.Struct, frozen=True):
    """What a worker said of itself when last asked. `unreachable`: it has not answered several times in a row."""

    running: int = 0
    kv_tokens: int = 0
    drained: bool = False
    unreachable: bool = False


class Registered(msgspec.Struct, frozen=True):
    """What the registry has of a ModelService: ready Pods that it lacks, and ids of the served model that no Pod here has."""

    missing: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """One ModelService and all that belongs to it. Raw objects are shared with the cache and must not be changed."""

    service: Mapping[str, Any]
    worker_pools: Mapping[str, Mapping[str, Any]]
    """By the pool's name."""
    pods: Mapping[str, tuple[Pod, ...]]
    """By the pool's name."""
    raw_pods: Mapping[str, Mapping[str, Any]]
    """By the Pod's name."""
    children: Mapping[tuple[ObjectKind, str], Mapping[str, Any]]
    """By kind and name."""
    secret: Mapping[str, Any] | None
    reports: Mapping[str, Report | None]
    """By the uid of a leading Pod; None: asked, and no answer."""
    registered: Registered | None = None
    """None: not known."""
    refused: str = ""
    """What the API server said when it last refused one of our writes for good; empty: it did not."""


_CHILDREN = (SERVICE, NETWORK_POLICY, DISRUPTION_BUDGET, REVISION)


def observe(
    cache: Cache,
    key: Key,
    *,
    secret: Mapping[str, Any] | None,
    reports: Mapping[str, Report | None],
    registered: Registered | None = None,
    refused: str = "",
) -> Observed | None:
    """The state of one ModelService; None if it is gone."""
    service = cache.get(MODEL_SERVICE, *key)
    if service is None:
        return None
    raw_pods = cache.owned(key, POD)
    pods: dict[str, list[Pod]] = {}
    for raw in raw_pods.values():
        pods.setdefault(_pool_of(raw), []).append(read_pod(raw))
    return Observed(
        service=service,
        # By name, which nobody can change: a label spoilt by hand must not make a pool look as if the spec had no such pool.
        worker_pools={name.removeprefix(names.pool_object(key[1], "")): raw for name, raw in cache.owned(key, WORKER_POOL).items()},
        pods={pool: tuple(found) for pool, found in pods.items()},
        raw_pods=raw_pods,
        children={(kind, name): raw for kind in _CHILDREN for name, raw in cache.owned(key, kind).items()},
        secret=secret,
        reports=reports,
        registered=registered,
        refused=refused,
    )


def _pool_of(raw: Mapping[str, Any]) -> str:
    return str((raw["metadata"].get("labels") or {}).get(names.POOL_LABEL, ""))
