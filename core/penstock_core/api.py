"""The custom resources ModelService and WorkerPool, group `serving.penstock.dev`, version `v1alpha1`, as typed values.

The operator reads objects with `model_validate` and writes `model_dump(by_alias=True, exclude_none=True)`; the CRD YAML is
made from these classes (penstock_operator.crds). The router must not import this: pydantic stays off its path.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from penstock_core.api_parts import (
    GANG_FITS,
    ROLE_STAYS,
    Count,
    Drain,
    Engine,
    Model,
    ObjectName,
    Part,
    Pool,
    PoolName,
    Replicas,
    Rollout,
    Scaling,
    Sized,
    Slo,
    Text,
    Transfer,
    list_map,
    ruled,
)
from penstock_core.api_terms import API_VERSION, MOST_POOLS, Column, ConditionStatus, Connector, EngineType, Kind, PoolRole, Rule

_AGE = Column("Age", "date", ".metadata.creationTimestamp", "Time since it was created.")
_READY = Column("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether every pool serves.")


class Condition(Part):
    """One aspect of the state."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """Which aspect."""
    status: ConditionStatus
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=256, pattern="^[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?$")]
    """Why, in one word for programs."""
    message: Annotated[str, Field(max_length=4_096)] = ""
    """Why, for people, with what to do."""
    last_transition_time: Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
    """When `status` last changed."""
    observed_generation: Count = 0
    """The metadata.generation it speaks of."""


class PoolStatus(Part):
    """A pool as it is."""

    name: PoolName
    """Name of the pool."""
    role: PoolRole
    """Role of the pool."""
    desired: Count = 0
    """Replicas wanted; restored from here when the WorkerPool is recreated."""
    ready: Count = 0
    """Replicas that serve."""
    draining: Count = 0
    """Replicas that finish their answers and take nothing new."""
    generation: Annotated[str, Field(max_length=63)] = ""
    """Generation that the ready replicas belong to; the new one once all of them do."""


class ModelServiceStatus(Part):
    """What is."""

    observed_generation: Count = 0
    """The metadata.generation that this status speaks of."""
    conditions: tuple[Condition, ...] = Field(default=(), max_length=16, json_schema_extra=list_map("type"))
    """Ready sums up the others."""
    endpoint: Text = ""
    """URL of the OpenAI-compatible API."""
    prefill: Annotated[str, Field(max_length=32)] = ""
    """Ready/desired replicas that prefill (roles Prefill and Both)."""
    decode: Annotated[str, Field(max_length=32)] = ""
    """Ready/desired replicas that decode (roles Decode and Both)."""
    pools: tuple[PoolStatus, ...] = Field(default=(), max_length=MOST_POOLS, json_schema_extra=list_map("name"))
    """Each pool as it is."""


_WEIGHTS_NAMED = Rule(
    "self.engine.type == 'Sim' || has(self.model.source.pvc) || has(self.model.source.hub) || has(self.model.source.oci)",
    "an engine other than Sim needs weights: set model.source to one of pvc, hub (`hub: {}` for a public model) and oci",
)
_CONNECTOR_FITS = Rule(
    "!has(self.transfer.connector) || self.transfer.connector in "
    "{'Sim': ['Nixl'], 'VLLM': ['Nixl', 'Mooncake'], 'SGLang': ['SGLang']}[self.engine.type]",
    "transfer.connector does not fit engine.type: leave it out, or take Nixl (Sim, VLLM), Mooncake (VLLM) or SGLang (SGLang)",
)
_ONE_POD = "{0}.parallelism.tensor * {0}.parallelism.pipeline == (has({0}.accelerator) ? {0}.accelerator.count : 1)"
_ONE_POD_MESSAGE = "engine.host Process serves replicas of one Pod: set accelerator.count to tensor × pipeline, or engine.host to Ray"


_RANKS_AT_LEAST = "(has(p.autoscaling) ? p.autoscaling.minReplicas * p.parallelism.tensor * p.parallelism.pipeline : 0)"
_BUDGET_FITS = Rule(
    f"!has(self.scaling.maxAccelerators) || self.pools.map(p, {_RANKS_AT_LEAST}).sum() <= self.scaling.maxAccelerators",
    "scaling.maxAccelerators is less than the minReplicas of the pools take: raise it or lower them",
)


class _Served(Part):
    """What a ModelService hands down to each WorkerPool as it stands."""

    model: Model
    """What is served."""
    engine: Engine
    """What computes, and with what settings."""
    slo: Slo = Slo()
    """Latency targets of requests that bring none of their own. A change holds within seconds and rolls nothing."""
    transfer: Transfer = Transfer()
    """How KV goes from prefill workers to decode workers."""
    rollout: Rollout = Rollout()
    """How a new generation replaces the old one."""
    drain: Drain = Drain()
    """How a replica leaves."""

    @property
    def connector(self) -> Connector:
        """The one named, else the engine's own."""
        return self.transfer.connector or (Connector.SGLANG if self.engine.type is EngineType.SGLANG else Connector.NIXL)


class ModelServiceSpec(_Served):
    """What is wanted."""

    model_config = ruled(
        _WEIGHTS_NAMED,
        _CONNECTOR_FITS,
        Rule(f"self.engine.host == 'Ray' || self.pools.all(p, {_ONE_POD.format('p')})", _ONE_POD_MESSAGE),
        _BUDGET_FITS,
    )
    scaling: Scaling = Scaling()
    """How the autoscaler goes about the pools that have bounds."""
    pools: Annotated[tuple[Pool, ...], Field(min_length=1, max_length=MOST_POOLS)] = Field(
        json_schema_extra=list_map(
            "name", Rule("self.exists(p, p.role != 'Prefill')", "nothing would decode: add a pool with role Decode or Both")
        )
    )
    """Workers by role; any number of pools of each role."""


class WorkerPoolSpec(_Served, Sized):
    """What is wanted of one pool. Written by the operator from the ModelService, but for `replicas`."""

    model_config = ruled(
        _WEIGHTS_NAMED,
        _CONNECTOR_FITS,
        ROLE_STAYS,
        GANG_FITS,
        Rule(f"self.engine.host == 'Ray' || {_ONE_POD.format('self')}", _ONE_POD_MESSAGE),
    )
    model_service: ObjectName
    """Name of the ModelService it belongs to."""
    pool: PoolName
    """Name of the pool in the ModelService."""
    replicas: Replicas = 1
    """Replicas wanted. Owned by whoever scales: `kubectl scale`, an autoscaler, or the operator at the start."""


class WorkerPoolStatus(Part):
    """What is."""

    observed_generation: Count = 0
    """The metadata.generation that this status speaks of."""
    conditions: tuple[Condition, ...] = Field(default=(), max_length=16, json_schema_extra=list_map("type"))
    """Ready sums up the others."""
    replicas: Count = 0
    """Replicas that exist, of any generation, draining ones left out."""
    ready: Count = 0
    """Replicas that serve."""
    updated: Count = 0
    """Replicas that serve with the newest generation."""
    draining: Count = 0
    """Replicas that finish their answers and take nothing new."""
    generation: Annotated[str, Field(max_length=63)] = ""
    """The newest generation: hash of the whole Pod template."""
    kv_generation: Annotated[str, Field(max_length=63)] = ""
    """Hash of what KV bytes depend on; only equal ones are paired."""
    selector: Text = ""
    """Label selector of the leading Pod of every replica, for the scale subresource."""


class Metadata(Part):
    """The part of an object's metadata that the operator reads. The API server checks it; only `name` is limited further."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = Field(default={})
    annotations: dict[str, str] = Field(default={})
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class ModelService(Part):
    """One served model: its engine, its latency targets and its pools of workers, behind one OpenAI-compatible URL."""

    kind_facts: ClassVar[Kind] = Kind(
        name="ModelService",
        plural="modelservices",
        short="msvc",
        most_name_letters=36,
        columns=(
            _READY,
            Column("Prefill", "string", ".status.prefill", "Ready/desired replicas that prefill."),
            Column("Decode", "string", ".status.decode", "Ready/desired replicas that decode."),
            Column("TTFT-SLO", "integer", ".spec.slo.ttftMilliseconds", "Target for the time to the first token, in milliseconds."),
            _AGE,
        ),
    )
    api_version: str = API_VERSION
    kind: str = kind_facts.name
    metadata: Metadata = Metadata()
    spec: ModelServiceSpec
    """What is wanted."""
    status: ModelServiceStatus = ModelServiceStatus()
    """What is."""


class WorkerPool(Part):
    """One pool of a ModelService: replicas of one role and setting. Made by the operator; scale it, do not write it."""

    kind_facts: ClassVar[Kind] = Kind(
        name="WorkerPool",
        plural="workerpools",
        short="wp",
        most_name_letters=53,
        columns=(
            _READY,
            Column("Role", "string", ".spec.role", "What its workers do."),
            Column("Desired", "integer", ".spec.replicas", "Replicas wanted."),
            Column("Serving", "integer", ".status.ready", "Replicas that serve."),
            Column("Draining", "integer", ".status.draining", "Replicas that finish their answers and take nothing new."),
            _AGE,
        ),
        scale=(".spec.replicas", ".status.replicas", ".status.selector"),
    )
    api_version: str = API_VERSION
    kind: str = kind_facts.name
    metadata: Metadata = Metadata()
    spec: WorkerPoolSpec
    """What is wanted."""
    status: WorkerPoolStatus = WorkerPoolStatus()
    """What is."""


KINDS: tuple[type[ModelService] | type[WorkerPool], ...] = (ModelService, WorkerPool)
"""Every kind that has a CRD."""
