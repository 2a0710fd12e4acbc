"""What is rendered: Pods that the worker's own settings understand, merged with what users add, named within limits."""

import re
from typing import Any

import msgspec
import pytest
from control_plane import ControlPlane, accepted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock_cli.settings import parse_settings
from penstock_core.api import ModelServiceSpec
from penstock_operator import names
from penstock_operator.config import OperatorConfig, OperatorSecrets
from penstock_operator.difference import differs
from penstock_operator.render import children
from penstock_operator.render.merge import merge_patch, merge_template
from penstock_operator.render.pod import CONTAINER, instantiate, kv_generation, literal, render_template
from penstock_operator.render.secret import ENV_OF_KEY, secret_values
from penstock_process.secrets import FLEET_TOKEN, REDIS_URL
from penstock_worker.config import RAY_TOKEN, load_config

CONFIG = OperatorConfig(image="penstock:1")
SECRETS = OperatorSecrets(fleet_token="t" * 32, redis_url="redis://:pass@redis:6379/0")
SERVICE = {"metadata": {"name": "llama", "namespace": "team", "uid": "u-1"}}


def spec_of(**fields: Any) -> ModelServiceSpec:
    pools = [{"name": "prefill", "role": "Prefill"}, {"name": "decode", "role": "Decode", "replicas": 2}]
    return ModelServiceSpec.model_validate({"model": {"name": "org/llama"}, "engine": {"type": "Sim"}, "pools": pools} | fields)


def template_of(pool: int = 0, pod_template: dict[str, Any] | None = None, **fields: Any) -> Any:
    spec = spec_of(**fields)
    return render_template("llama", spec, spec.pools[pool], pod_template or {}, CONFIG, SECRETS)


def worker_of(template: Any) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in template.body["spec"]["containers"] if c["name"] == CONTAINER)
    return found


def told_of(pod: dict[str, Any]) -> dict[str, Any]:
    """The settings that a Pod's worker is started with: its arguments as the kubelet expands them."""
    container = next(c for c in pod["spec"]["containers"] if c["name"] == CONTAINER)
    known = {"POD_UID": "0e9b6f9c-1111-2222-3333-444455556666", "POD_IP": "10.0.0.7"}
    known |= {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    args = [re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], text) for text in container["args"]]
    settings = parse_settings([value for name, value in zip(args[::2], args[1::2], strict=True) if name == "--set"])
    return {name[2:]: value for name, value in zip(args[::2], args[1::2], strict=True) if name != "--set"} | settings


def pod_of(template: Any, rank: int = 0) -> dict[str, Any]:
    return instantiate(template, namespace="team", service="llama", pool="decode", replica="abcde", rank=rank, pool_uid="u-1")


def test_the_worker_understands_its_command_line() -> None:
    """The rendered arguments, with the Pod's own facts filled in, are settings that the worker accepts."""
    config = load_config(None, told_of(pod_of(template_of(1, engine={"type": "Sim", "host": "Process"}))))
    assert (config.role.value, config.model, config.pool, config.port) == ("decode", "org/llama", "decode", 8000)
    assert config.url("::", 8000) == "http://10.0.0.7:8000" and config.listen_host == "0.0.0.0"
    assert config.drain_s == 300 and config.kv_claim_seconds == 30 and config.engine_host == "process"
    assert config.kv_generation == kv_generation(spec_of(), CONFIG)


def test_vllm_gets_its_model_and_its_words() -> None:
    """The folder that is mounted, the user's words as they stand, and the connector; nothing of a text is expanded."""
    engine = {"type": "VLLM", "host": "Process", "args": ["--max-num-seqs", "64", "$(PENSTOCK_FLEET_TOKEN)"]}
    template = template_of(1, engine=engine, model={"name": "org/llama", "source": {"pvc": {"name": "models", "path": "/llama"}}})
    pod = pod_of(template)
    assert 'engine_args=["--max-num-seqs","64","$$(PENSTOCK_FLEET_TOKEN)"]' in worker_of(template)["args"]
    next(c for c in pod["spec"]["containers"])["args"] = [text.replace("$$(", "$[") for text in worker_of(template)["args"]]
    config = load_config(None, told_of(pod))
    assert (config.engine, config.model_folder, config.connector) == ("vllm", "/model/llama", "nixl")
    assert config.engine_args == ("--max-num-seqs", "64", "$[PENSTOCK_FLEET_TOKEN)")


@pytest.mark.parametrize(("kind", "connector"), [("VLLM", "nixl"), ("SGLang", "sglang")])
def test_an_engine_with_a_hub_gets_the_models_name_and_may_ask_for_it(kind: str, connector: str) -> None:
    """Name and revision instead of a folder, the hub's token from its Secret, and no model volume."""
    model = {"name": "org/llama", "revision": "v2", "source": {"hub": {"tokenSecretRef": {"name": "hub"}}}}
    template = template_of(1, engine={"type": kind, "host": "Process", "image": "engine:1"}, model=model)
    config = load_config(None, told_of(pod_of(template)))
    assert (config.engine, config.model_hub, config.model_revision) == (kind.lower(), "org/llama", "v2")
    assert (config.model_folder, config.connector, config.transfer_host) == ("", connector, "10.0.0.7")
    worker = worker_of(template)
    token = next(variable for variable in worker["env"] if variable["name"] == "HF_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token"}
    assert {mount["mountPath"] for mount in worker["volumeMounts"]} == {"/dev/shm", "/tmp"}


def test_a_pod_of_a_real_engine_has_its_gpus_its_model_and_time_to_load() -> None:
    """GPUs by the pool's accelerator, the volume read-only, shared memory for the engine's processes, an hour to come up."""
    source = {"pvc": {"name": "models", "path": "/llama"}}
    decode = {"name": "decode", "role": "Decode", "accelerator": {"count": 2}, "parallelism": {"tensor": 2}}
    engine = {"type": "VLLM", "host": "Process", "image": "vllm:1"}
    template = template_of(pools=[decode], engine=engine, model={"name": "org/llama", "source": source})
    worker, spec = worker_of(template), template.body["spec"]
    assert (worker["image"], worker["command"]) == ("vllm:1", ["penstock", "worker"])
    assert worker["resources"] == {"limits": {"nvidia.com/gpu": "2"}}
    assert 'engine_args=["--tensor-parallel-size","2"]' in worker["args"]
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}} in spec["volumes"]
    assert {"name": "model", "mountPath": "/model", "readOnly": True} in worker["volumeMounts"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in spec["volumes"]
    probe = worker["startupProbe"]
    assert probe["httpGet"] == {"path": "/health", "port": "http"}
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 3_600


def test_each_pod_of_a_gang_knows_its_place() -> None:
    """Ranks 0 to 3 of one template: the same but for the rank, all with the leader's name in the headless Service, GPUs as asked for."""
    decode = {"name": "decode", "role": "Decode", "parallelism": {"tensor": 8}, "accelerator": {"count": 2}}
    template = template_of(pools=[decode])
    found = [load_config(None, told_of(pod_of(template, rank))) for rank in range(template.size)]
    assert [(one.engine_host, one.gang_size, one.gang_rank, one.gang_gpus) for one in found] == [("ray", 4, rank, 2) for rank in range(4)]
    assert {one.gang_leader for one in found} == {"llama-decode-abcde-0.llama-workers.team.svc:8001"}
    assert pod_of(template, 0)["spec"]["hostname"] == "llama-decode-abcde-0" and pod_of(template)["spec"]["subdomain"] == "llama-workers"
    assert children.workers_service(SERVICE)["metadata"]["name"] == "llama-workers"
    alone = load_config(None, told_of(pod_of(template_of(1))))
    assert (alone.engine_host, alone.gang_size, alone.gang_rank) == ("ray", 1, 0)


def test_probes_ask_what_lives_on() -> None:
    """With Ray the page beside the engine: a gang that waits for a member is not ready, and lives. Else the worker itself."""
    by_host = {host: worker_of(template_of(engine={"type": "Sim", "host": host})) for host in ("Ray", "Process")}
    probes = {
        host: [worker[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")] for host, worker in by_host.items()
    }
    ready, alive, health = ({"path": path, "port": port} for path, port in (("/readyz", "gang"), ("/livez", "gang"), ("/health", "http")))
    assert probes == {"Ray": [ready, ready, alive], "Process": [health, health, health]}
    assert {"name": "gang", "containerPort": 8001, "protocol": "TCP"} in by_host["Ray"]["ports"]


def test_a_pod_waits_for_its_secret_and_rolls_when_it_changes() -> None:
    """Only what is set is asked for, and then it must be there; a new token makes a new template of the same KV generation."""
    spec = spec_of()

    def rendered(secrets: OperatorSecrets) -> Any:
        return render_template("llama", spec, spec.pools[0], {}, CONFIG, secrets)

    plain = rendered(SECRETS)
    asked = {v["name"]: v["valueFrom"]["secretKeyRef"] for v in worker_of(plain)["env"] if "secretKeyRef" in v.get("valueFrom", {})}
    assert set(asked) == {FLEET_TOKEN, REDIS_URL, RAY_TOKEN} and not any("optional" in key for key in asked.values())
    assert {key["key"] for key in asked.values()} == children.secret(SERVICE, SECRETS)["data"].keys()
    for change in ({"fleet_token": "u" * 32}, {"redis_url": "redis://:new@redis:6379/0"}, {"chunk_secret": "ff"}):
        other = rendered(msgspec.structs.replace(SECRETS, **change))
        assert other.hash != plain.hash and other.kv_generation == plain.kv_generation
    process = worker_of(template_of(engine={"type": "Sim", "host": "Process"}))
    assert RAY_TOKEN not in {variable["name"] for variable in process["env"]}
    assert names.SECRETS_ANNOTATION not in rendered(OperatorSecrets(redis_url="redis://redis")).body["metadata"].get("annotations", {})
    assert ENV_OF_KEY.keys() == secret_values("u-1", OperatorSecrets("t", "ff", "redis://redis")).keys()


def test_the_grace_is_the_drain_and_fifteen_seconds() -> None:
    """SIGTERM drains; the kubelet must not cut it short."""
    assert template_of(drain={"deadlineSeconds": 40}).body["spec"]["terminationGracePeriodSeconds"] == 55


def test_what_changes_the_pod_changes_its_hash_and_what_changes_kv_changes_the_generation() -> None:
    """Image, model revision and arguments change both; environment, drain and another pool's size change the template or nothing."""
    plain = template_of()
    for change in ({"engine": {"type": "Sim", "image": "penstock:2"}}, {"model": {"name": "org/llama", "revision": "v2"}}):
        other = template_of(**change)
        assert other.hash != plain.hash and other.kv_generation != plain.kv_generation
    slower = template_of(drain={"deadlineSeconds": 40})
    assert slower.hash != plain.hash and slower.kv_generation == plain.kv_generation
    assert template_of(slo={"ttftMilliseconds": 900}).hash == plain.hash
    assert template_of(0).kv_generation == template_of(1).kv_generation


def test_a_users_template_is_laid_over() -> None:
    """Containers by name, nulls remove, lists replace; our labels cannot be taken away."""
    users = {
        "metadata": {"labels": {"team": "a", names.POOL_LABEL: "spoilt"}, "annotations": {"x": "y"}},
        "spec": {
            "nodeSelector": {"gpu": "h100"},
            "automountServiceAccountToken": None,
            "containers": [{"name": "worker", "resources": {"limits": {"cpu": "4"}}}, {"name": "side", "image": "side:1"}],
        },
    }
    body = template_of(pod_template=users).body
    assert body["metadata"]["labels"]["team"] == "a" and body["metadata"]["labels"][names.POOL_LABEL] == "prefill"
    assert "automountServiceAccountToken" not in body["spec"] and body["spec"]["nodeSelector"] == {"gpu": "h100"}
    worker, side = body["spec"]["containers"]
    assert worker["resources"] == {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "4"}}
    assert worker["image"] == "penstock:1" and side == {"name": "side", "image": "side:1"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from("abc"), JSON), st.dictionaries(st.sampled_from("abc"), JSON))
def test_a_merge_patch_laid_over_twice_is_as_once(target: dict[str, Any], patch: dict[str, Any]) -> None:
    """RFC 7396: idempotent, and no null of the patch is left at the top."""
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once
    assert all(once.get(name) is not None for name, value in patch.items() if value is not None)
    assert not any(name in once for name, value in patch.items() if value is None)
    assert merge_template({"spec": {}}, {}) == {"spec": {}}


def test_nothing_of_a_users_text_is_expanded() -> None:
    """A model called `$(PENSTOCK_FLEET_TOKEN)` stays a name."""
    assert literal("$(PENSTOCK_FLEET_TOKEN)") == "$$(PENSTOCK_FLEET_TOKEN)"
    variable = {"name": "X", "value": "$(PENSTOCK_FLEET_TOKEN)"}
    env = worker_of(template_of(engine={"type": "Sim", "env": [variable]}))["env"]
    assert {"name": "X", "value": "$$(PENSTOCK_FLEET_TOKEN)"} in env


def test_the_longest_names_fit() -> None:
    """36 letters of a ModelService, 16 of a pool, a gang of 64: every Pod's name is a DNS label."""
    name = names.pod_name("s" * 36, "p" * 16, names.replica_id("hash", 0), 63, 64)
    assert len(name) <= 63
    assert len({names.replica_id("hash", number) for number in range(1_000)}) >= 999, "ids hardly ever meet"


def test_secrets_are_the_same_however_often_they_are_written() -> None:
    """The Ray token is derived: a repeated write differs in nothing; another ModelService has another."""
    one = children.secret(SERVICE, SECRETS)
    assert not differs(children.secret(SERVICE, SECRETS), one)
    other = children.secret({"metadata": {**SERVICE["metadata"], "uid": "u-2"}}, SECRETS)
    assert other["data"]["ray-token"] != one["data"]["ray-token"]
    assert "pass" not in repr(SECRETS) and "t" * 32 not in repr(SECRETS)


@pytest.mark.parametrize("tensor", [1, 4])
def test_pod_security_restricted_admits_the_pods(control_plane: ControlPlane, namespace: str, tensor: int) -> None:
    """The real admission plugin at `restricted`, and the API server's own checks, take every Pod of a gang."""
    body = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    headers = {"content-type": "application/merge-patch+json"}
    accepted(control_plane.client.patch(f"/api/v1/namespaces/{namespace}", json=body, headers=headers))
    pools = [{"name": "decode", "role": "Decode", "parallelism": {"tensor": tensor}}]
    model = {"name": "org/llama", "source": {"pvc": {"name": "models", "path": "/llama"}}}
    template = template_of(pools=pools, model=model)
    assert template.size == tensor
    for rank in range(tensor):
        pod = instantiate(template, namespace=namespace, service="llama", pool="decode", replica="abcde", rank=rank, pool_uid="u-1")
        pod["metadata"].pop("ownerReferences")
        accepted(control_plane.apply(pod))
