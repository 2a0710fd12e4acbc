"""How everything the operator makes is named, labelled and annotated, and how templates are hashed.

Names are a function of what they name, so that a write that is repeated after an interruption meets its own object, never
makes a second one. Pure.
"""

import hashlib
from typing import Any

import msgspec
from penstock_core import api_terms
from penstock_core.api_terms import PREFIX

FIELD_MANAGER = api_terms.OPERATOR_MANAGER
DRAIN_MANAGER = "penstock-operator-drain"
"""Owns the drain annotations alone, so that applying a Pod again does not take them away."""

MANAGED_BY = {"app.kubernetes.io/managed-by": "penstock-operator"}
MANAGED_SELECTOR = "app.kubernetes.io/managed-by=penstock-operator"

SERVICE_LABEL, POOL_LABEL, RANK_LABEL = api_terms.SERVICE_LABEL, api_terms.POOL_LABEL, api_terms.RANK_LABEL
ROLE_LABEL = f"{PREFIX}role"
REPLICA_LABEL = f"{PREFIX}replica"
TEMPLATE_HASH_LABEL = f"{PREFIX}template-hash"
KV_GENERATION_LABEL = f"{PREFIX}kv-generation"

APPLIED_ANNOTATION = f"{PREFIX}applied"
"""Hash of what was applied: it tells what we no longer want from what others added."""
START_REPLICAS_ANNOTATION = f"{PREFIX}start-replicas"
"""On a WorkerPool: the pool's `replicas` of the ModelService that was applied last."""
SECRETS_ANNOTATION = f"{PREFIX}secrets"
"""On a Pod: keyed digest of what its Secret held when it was made."""
DRAIN_ANNOTATION = api_terms.DRAIN_ANNOTATION
DRAIN_DEADLINE_ANNOTATION = f"{PREFIX}drain-deadline"
"""On a Pod: when it is deleted whatever still runs, RFC 3339."""

_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # no vowels: no words
_REPLICA_LETTERS = 5


def digest(value: Any, letters: int = 10) -> str:
    """Hash of a JSON value, independent of the order of its keys; lower-case hex."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()[:letters]


def replica_id(template_hash: str, number: int) -> str:
    """Five letters that name the `number`th replica of a generation within its pool."""
    drawn = int.from_bytes(hashlib.sha256(f"{template_hash}/{number}".encode()).digest()[:8], "big")
    letters = []
    for _ in range(_REPLICA_LETTERS):
        drawn, rest = divmod(drawn, len(_LETTERS))
        letters.append(_LETTERS[rest])
    return "".join(letters)


def pool_object(service: str, pool: str) -> str:
    """Name of a pool's WorkerPool."""
    return f"{service}-{pool}"


def pod_name(service: str, pool: str, replica: str, rank: int, size: int) -> str:
    """Name of one Pod of a gang of `size`."""
    leader = f"{pool_object(service, pool)}-{replica}"
    return leader if size == 1 else f"{leader}-{rank}"


def workers_object(service: str) -> str:
    """Name of the headless Service, the Secret and the NetworkPolicy of a ModelService."""
    return f"{service}-workers"
