"""What is rendered: Pods that the worker's own settings understand, merged with what users add, named within limits."""

from typing import Any

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
from penstock_operator.render.pod import CONTAINER, SECRET_ENV, instantiate, kv_generation, literal, render_template
from penstock_process.secrets import CHUNK_SECRET, FLEET_TOKEN, REDIS_URL
from penstock_worker.config import load_config

CONFIG = OperatorConfig(image="penstock:1")
SERVICE = {"metadata": {"name": "llama", "namespace": "team", "uid": "u-1"}}


def spec_of(**fields: Any) -> ModelServiceSpec:
    pools = [{"name": "prefill", "role": "Prefill"}, {"name": "decode", "role": "Decode", "replicas": 2}]
    return ModelServiceSpec.model_validate({"model": {"name": "org/llama"}, "engine": {"type": "Sim"}, "pools": pools} | fields)


def template_of(pool: int = 0, pod_template: dict[str, Any] | None = None, **fields: Any) -> Any:
    spec = spec_of(**fields)
    return render_template("llama", spec, spec.pools[pool], pod_template or {}, CONFIG)


def worker_of(template: Any) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in template.body["spec"]["containers"] if c["name"] == CONTAINER)
    return found


def test_the_worker_understands_its_command_line() -> None:
    """The rendered arguments, with the Pod's own facts filled in, are settings that the worker accepts."""
    args = [
        text.replace("$(POD_UID)", "0e9b6f9c-1111-2222-3333-444455556666").replace("$(POD_IP)", "10.0.0.7")
        for text in worker_of(template_of(1))["args"]
    ]
    options = dict(zip(args[::2], args[1::2], strict=True))
    settings = parse_settings([value for name, value in zip(args[::2], args[1::2], strict=True) if name == "--set"])
    told = {name[2:]: value for name, value in options.items() if name != "--set"}
    config = load_config(None, {**told, **settings})
    assert (config.role.value, config.model, config.pool, config.port) == ("decode", "org/llama", "decode", 8000)
    assert config.url("::", 8000) == "http://10.0.0.7:8000" and config.listen_host == "0.0.0.0"
    assert config.drain_s == 300 and config.kv_claim_seconds == 30
    assert config.kv_generation == kv_generation(spec_of(), CONFIG)
    assert {CHUNK_SECRET, FLEET_TOKEN, REDIS_URL} <= SECRET_ENV.keys()


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
    assert worker["resources"] == {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "4"}}
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
    secrets = OperatorSecrets(fleet_token="t" * 32, redis_url="redis://:pass@redis:6379/0")
    one = children.secret(SERVICE, secrets)
    assert not differs(children.secret(SERVICE, secrets), one)
    other = children.secret({"metadata": {**SERVICE["metadata"], "uid": "u-2"}}, secrets)
    assert other["data"]["ray-token"] != one["data"]["ray-token"]
    assert "pass" not in repr(secrets) and "t" * 32 not in repr(secrets)


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
