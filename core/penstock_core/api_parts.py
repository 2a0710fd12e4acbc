"""What a ModelService is made of: model, engine, targets, pools, each part with its limits, defaults and rules.

`api` puts the parts together into the kinds; together they are the source of the CRD YAML. The text below a field is what
`kubectl explain` shows; limits and defaults are enforced by the API server; rules between fields are CEL, kept as data.
Python checks single fields only. Unknown fields are ignored, so that an older operator can read newer objects.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel

from penstock_core.api_terms import DNS_LABEL, DNS_LABEL_WORDS, MOST_RANKS, MOST_REPLICAS, Connector, EngineHost, EngineType, PoolRole, Rule


def rules_of(*rules: Rule) -> dict[str, JsonValue]:
    """The rules as a schema carries them."""
    return {"x-kubernetes-validations": [{"rule": rule.cel, "message": rule.message} for rule in rules]}


def ruled(*rules: Rule) -> ConfigDict:
    """The `model_config` of a class with rules between its fields."""
    return ConfigDict(json_schema_extra=rules_of(*rules))


def list_map(key: str, *rules: Rule) -> dict[str, JsonValue]:
    """What a list's schema carries when its items are told apart by `key`: no two alike, and merged one by one."""
    keyed: dict[str, JsonValue] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    return keyed | (rules_of(*rules) if rules else {})


GANG_FITS = Rule(
    "!has(self.accelerator) || self.accelerator.count < 1"
    " || self.parallelism.tensor * self.parallelism.pipeline % self.accelerator.count == 0",
    "parallelism.tensor × parallelism.pipeline must be a multiple of accelerator.count: each Pod holds that many ranks",
)
ROLE_STAYS = Rule("self.role == oldSelf.role", "role cannot be changed: add a pool of another name and remove this one")


class Part(BaseModel):
    """A frozen value, camelCase outside; the text below a field is its description."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", use_attribute_docstrings=True)


Text = Annotated[str, Field(max_length=1_024)]
ObjectName = Annotated[str, Field(min_length=1, max_length=253)]
Image = Annotated[str, Field(max_length=512)]
PoolName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=16,
        json_schema_extra=rules_of(Rule(f"self.matches('{DNS_LABEL}')", f"a pool's name is part of its Pods' names: {DNS_LABEL_WORDS}")),
    ),
]
Replicas = Annotated[int, Field(ge=0, le=MOST_REPLICAS)]
Count = Annotated[int, Field(ge=0)]


class SecretKey(Part):
    """One key of a Secret in the same namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: ObjectName = "token"
    """Key within the Secret."""


class PvcSource(Part):
    """A folder of a PersistentVolumeClaim, mounted read-only."""

    name: ObjectName
    """Name of the PersistentVolumeClaim in the same namespace."""
    path: Text = "/"
    """Folder of the model within the volume."""


class HubSource(Part):
    """A model hub, asked for the model's name and revision when a worker starts."""

    token_secret_ref: SecretKey | None = None
    """Secret that holds the hub's access token. Absent: the model is public."""


class OciSource(Part):
    """An image whose files are the model, mounted as an image volume."""

    image: Image = Field(min_length=1)
    """Reference of the image, best with a digest."""


class ModelSource(Part):
    """Where the weights come from: at most one of the three."""

    model_config = ruled(
        Rule(
            "[has(self.pvc), has(self.hub), has(self.oci)].filter(x, x).size() <= 1",
            "source takes one of pvc, hub and oci: remove the others",
        )
    )
    pvc: PvcSource | None = None
    """A folder of a PersistentVolumeClaim, mounted read-only."""
    hub: HubSource | None = None
    """A model hub; `hub: {}` for a public model."""
    oci: OciSource | None = None
    """An image whose files are the model."""


class Model(Part):
    """What is served."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        json_schema_extra=rules_of(
            Rule(
                "self.matches('^[A-Za-z0-9][A-Za-z0-9._:/@-]*$')",
                "a model's name takes letters, digits and . _ : / @ -, a letter or digit first",
            )
        )
    )
    """Name that clients put in `model`, and under which a hub knows the weights."""
    revision: Annotated[str, Field(min_length=1, max_length=128)] = "main"
    """Branch, tag or commit of the weights."""
    source: ModelSource = ModelSource()
    """Where the weights come from: one of pvc, hub and oci; none for engine Sim."""


class KeyOf(Part):
    """One key of a Secret or ConfigMap in the same namespace."""

    name: ObjectName
    """Name of the Secret or ConfigMap."""
    key: ObjectName
    """Key within it."""


class EnvSource(Part):
    """Where the value of an environment variable comes from."""

    model_config = ruled(
        Rule("has(self.secretKeyRef) != has(self.configMapKeyRef)", "valueFrom takes one of secretKeyRef and configMapKeyRef")
    )
    secret_key_ref: KeyOf | None = None
    """A key of a Secret."""
    config_map_key_ref: KeyOf | None = None
    """A key of a ConfigMap."""


class EnvVar(Part):
    """An environment variable of the engine."""

    model_config = ruled(Rule("has(self.value) != has(self.valueFrom)", "a variable takes one of value and valueFrom"))
    name: Annotated[str, Field(min_length=1, max_length=253, pattern="^[A-Za-z_][A-Za-z0-9_.-]*$")]
    """Its name."""
    value: Annotated[str, Field(max_length=4_096)] | None = None
    """Its value, as it stands."""
    value_from: EnvSource | None = None
    """Where its value is kept, for what should not stand here."""


class Engine(Part):
    """What computes, and with what settings."""

    type: EngineType
    """Sim needs no GPU and no weights: it answers made-up text in the time a real engine would take."""
    host: EngineHost = EngineHost.RAY
    """Ray spans the Pods of a replica; Process does without Ray, for replicas of one Pod (saves about 460 MB and 8 s)."""
    image: Image = ""
    """Image of the worker's Pods. Empty: the one the operator was installed with."""
    args: tuple[Text, ...] = Field(default=(), max_length=128)
    """Arguments added to the engine's command line."""
    env: tuple[EnvVar, ...] = Field(default=(), max_length=128, json_schema_extra=list_map("name"))
    """Environment of the engine."""
    profile_name: Annotated[str, Field(max_length=128)] = ""
    """Measured timing profile. Empty: the engine's own or measured at start."""


class Slo(Part):
    """Latency targets. The router places by them, the autoscaler sizes pools by them."""

    ttft_milliseconds: int = Field(default=500, ge=1, le=600_000)
    """Target for the time from a request's receipt to its first token, queueing included."""
    itl_milliseconds: int = Field(default=50, ge=1, le=60_000)
    """Target for the mean time of each further token of a request."""
    attainment_percent: int = Field(default=95, ge=1, le=100)
    """Share of requests that should meet both targets."""


class Transfer(Part):
    """How KV goes from prefill workers to decode workers."""

    connector: Connector | None = None
    """Absent: SGLang with engine SGLang, else Nixl. Mooncake needs engine VLLM."""
    claim_seconds: int = Field(default=30, ge=1, le=3_600)
    """How long the KV of a finished prefill waits for its decode worker."""


class Autoscaling(Part):
    """Bounds within which Penstock's autoscaler sizes the pool."""

    model_config = ruled(
        Rule("self.minReplicas <= self.maxReplicas", "minReplicas must be at most maxReplicas: lower the one or raise the other")
    )
    min_replicas: Replicas = 1
    """Never fewer replicas than this. 0: without traffic none; routers hold the first requests until a replica has started."""
    max_replicas: Annotated[int, Field(ge=1, le=MOST_REPLICAS)]
    """Never more replicas than this."""


class Scaling(Part):
    """How Penstock's autoscaler goes about the pools that have bounds."""

    paused: bool = False
    """Sizes stay as they are until this is false again."""
    max_accelerators: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Budget of all pools with bounds together, tensor × pipeline of each replica. Absent: the bounds alone."""
    manual_hold_seconds: int = Field(default=1_800, ge=0, le=604_800)
    """How long a size within the bounds that somebody has set by hand stays before the autoscaler goes on. One out of the bounds
    stays for good."""


class Parallelism(Part):
    """How one replica is split over accelerators."""

    model_config = ruled(Rule(f"self.tensor * self.pipeline <= {MOST_RANKS}", f"tensor × pipeline may be {MOST_RANKS} at most"))
    tensor: int = Field(default=1, ge=1, le=MOST_RANKS)
    """Ranks that share each layer."""
    pipeline: int = Field(default=1, ge=1, le=MOST_RANKS)
    """Stages that share out the layers."""


class Accelerator(Part):
    """Devices of one Pod."""

    resource_name: Annotated[str, Field(min_length=1, max_length=317)] = "nvidia.com/gpu"
    """Extended resource that the Pod asks for."""
    count: int = Field(default=1, ge=1, le=16)
    """Devices of each Pod; a replica has tensor × pipeline ÷ count Pods."""


class Sized(Part):
    """What a pool of a ModelService and a WorkerPool have in common."""

    role: PoolRole
    """Prefill computes prompts for others, Decode makes the tokens, Both does both. Cannot be changed."""
    autoscaling: Autoscaling | None = None
    """Bounds for the autoscaler. Absent: the size is changed by hand only."""
    parallelism: Parallelism = Parallelism()
    """How one replica is split over accelerators."""
    accelerator: Accelerator | None = None
    """Devices of each Pod. Absent: none, and one Pod for each rank."""
    pod_template: dict[str, Any] = Field(default={}, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    """Part of a PodTemplateSpec laid over the generated one: containers are merged by name (the worker's is `worker`), the
    rest as an RFC 7396 merge patch."""

    @property
    def pods_per_replica(self) -> int:
        """Pods in one gang."""
        return self.parallelism.tensor * self.parallelism.pipeline // (self.accelerator.count if self.accelerator else 1)


class Pool(Sized):
    """Workers of one role and setting."""

    model_config = ruled(ROLE_STAYS, GANG_FITS)
    name: PoolName
    """Unique in the ModelService; its WorkerPool is called <ModelService>-<pool>."""
    replicas: Replicas = 1
    """Replicas to start with. Afterwards the WorkerPool's scale owns the number; a change here is applied once where no
    autoscaling is set."""


class Rollout(Part):
    """How a new generation replaces the old one."""

    model_config = ruled(
        Rule("self.maxUnavailable + self.maxSurge > 0", "maxUnavailable and maxSurge cannot both be 0: the rollout could never take a step")
    )
    max_unavailable: int = Field(default=0, ge=0, le=MOST_REPLICAS)
    """Replicas of a pool that may be missing during a rollout."""
    max_surge: int = Field(default=1, ge=0, le=MOST_REPLICAS)
    """Replicas of a pool that may be there beyond the desired number during a rollout."""
    progress_deadline_seconds: int = Field(default=600, ge=1, le=86_400)
    """A rollout that makes no replica ready for this long stops and says so; the old generation goes on serving."""
    paused: bool = False
    """Stops a rollout where it is; scaling and repair go on."""


class Drain(Part):
    """How a replica leaves."""

    deadline_seconds: int = Field(default=300, ge=0, le=86_400)
    """How long running answers may go on before the replica is deleted anyway."""
