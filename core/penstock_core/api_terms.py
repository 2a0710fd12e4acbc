"""The words of the custom resources that are not fields: group and version, enumerated values, rules, printer columns.

`api` builds its classes with them, `penstock_operator.crds` writes them into the CRD. Plain standard library: the words can
be had without the schemas.
"""

from enum import StrEnum
from typing import NamedTuple

from penstock_core.endpoint import Role

GROUP = "serving.penstock.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
PREFIX = f"{GROUP}/"
"""Of every label and annotation of ours."""

SERVICE_LABEL, POOL_LABEL, RANK_LABEL = f"{PREFIX}model-service", f"{PREFIX}pool", f"{PREFIX}rank"
"""On every worker Pod; rank 0 leads a replica and answers."""
DRAIN_ANNOTATION = f"{PREFIX}drain"
"""On a Pod: why it leaves."""
OPERATOR_MANAGER = "penstock-operator"
"""Field manager of what the operator writes."""

DNS_LABEL = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""RFC 1035: a ModelService's name is also its Service's, and a Service's name must begin with a letter."""
DNS_LABEL_WORDS = "lower-case letters, digits and '-', a letter first, no '-' last"

MOST_POOLS = 16
"""Pools of one ModelService."""
MOST_REPLICAS = 1_000
"""Replicas of one pool."""
MOST_RANKS = 64
"""Tensor × pipeline ranks of one replica."""


class Rule(NamedTuple):
    """A CEL rule over `self`, and what the API server answers when it is false: what to do, not what went wrong."""

    cel: str
    message: str


class Column(NamedTuple):
    """A column of `kubectl get`."""

    name: str
    type: str
    path: str
    description: str


class Kind(NamedTuple):
    """What a CustomResourceDefinition says of a kind beside its schema."""

    name: str
    plural: str
    short: str
    most_name_letters: int
    """ModelService 36, a pool 16 and `-` make 53; `-` replica (5 letters) `-` rank (2 digits) make a Pod's 62 of 63."""
    columns: tuple[Column, ...]
    scale: tuple[str, str, str] | None = None
    """Paths of desired replicas, observed replicas and label selector; None: no scale subresource."""


class PoolRole(StrEnum):
    """What the workers of a pool do."""

    PREFILL = "Prefill"
    DECODE = "Decode"
    BOTH = "Both"

    @property
    def worker_role(self) -> Role:
        """The same role as a worker writes it."""
        return Role(self.value.lower())


class EngineType(StrEnum):
    """What computes."""

    SIM = "Sim"
    VLLM = "VLLM"
    SGLANG = "SGLang"


class EngineHost(StrEnum):
    """What supervises the engine within a Pod."""

    RAY = "Ray"
    PROCESS = "Process"


class Connector(StrEnum):
    """How KV goes from prefill to decode."""

    NIXL = "Nixl"
    SGLANG = "SGLang"
    MOONCAKE = "Mooncake"


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"
