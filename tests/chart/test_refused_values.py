"""Values that a user would get wrong, and what is answered: before anything is installed, with the place and what is allowed."""

import pytest
from chart_renders import CHART, helm
from go_programs import Programs

DIGEST = "sha256:" + "0" * 64

REFUSED = [
    (["router.replica=3"], ["at '/router'", "additional properties 'replica' not allowed"]),
    (["router.replicas=0"], ["at '/router/replicas'", "minimum: got 0, want 1"]),
    (["router.replicas=two"], ["at '/router/replicas'", "got string, want integer"]),
    (["router.policy=fastest"], ["at '/router/policy'", "'fastest' does not match pattern", "round-robin"]),
    (["router.logLevel=verbose"], ["at '/router/logLevel'", "'debug', 'info', 'warning', 'error'"]),
    (["router.service.type=Ingress"], ["at '/router/service/type'", "'ClusterIP', 'NodePort', 'LoadBalancer'"]),
    (["router.drainSeconds=-1"], ["at '/router/drainSeconds'", "minimum: got -1, want 0"]),
    (["router.models[0].chunk_bytes=512"], ["at '/router/models/0'", "missing property 'name'"]),
    (["router.settings.drain_s=5"], ["router.settings has drain_s; allowed: settings that have no value of their own in the chart"]),
    (["operator.settings.namespace=x"], ["operator.settings has namespace; allowed: settings that the chart does not set itself"]),
    (["operator.replicas=9"], ["at '/operator/replicas'", "maximum: got 9, want 5"]),
    (["image.pullPolicy=Sometimes"], ["at '/image/pullPolicy'", "'Always', 'IfNotPresent', 'Never'"]),
    (["image.digest=0123"], ["at '/image/digest'", "'0123' does not match pattern"]),
    (["image.repository="], ["at '/image/repository'", "minLength: got 0, want 1"]),
    (["watchNamespace=Team A"], ["at '/watchNamespace'", "does not match pattern"]),
    (["redis.url=http://redis"], ["at '/redis/url'", "(redis|rediss)://"]),
    (["redis.bundled.enabled=false"], ["no other Redis is named; allowed: redis.url, redis.existing.name, or the bundled one"]),
    (["redis.url=redis://a", "redis.existing.name=b"], ["redis.url and redis.existing.name are both set; allowed: one of them"]),
    (["apiKeys.keys.sk-1.weight=2"], ["at '/apiKeys/keys/sk-1'", "missing property 'tenant'"]),
    (["apiKeys.keys.sk-1.tenant=a", "apiKeys.existing=b"], ["apiKeys.existing and apiKeys.keys are both set; allowed: one of them"]),
    (["router.resources.requests.cpu=lots"], ["at '/router/resources/requests/cpu'", "does not match pattern"]),
    (["networkPolicy.clients[0].namespace=x"], ["at '/networkPolicy/clients/0'", "additional properties 'namespace' not allowed"]),
    (["autoscaler.replicas=9"], ["at '/autoscaler/replicas'", "maximum: got 9, want 5"]),
    (["autoscaler.settings.port=1"], ["autoscaler.settings has port; allowed: settings that the chart does not set itself"]),
    (["planner.enabled=true"], ["additional properties 'planner' not allowed"]),
]


@pytest.mark.parametrize(("values", "said"), REFUSED, ids=lambda found: ",".join(found) if isinstance(found, list) else None)
def test_a_wrong_value_is_refused_with_what_is_allowed(go_programs: Programs, values: list[str], said: list[str]) -> None:
    """The schema or a template says no, naming the value."""
    done = helm(go_programs, "template", "penstock", str(CHART), *(word for value in values for word in ("--set", value)))
    assert done.returncode != 0
    assert [words for words in said if words not in done.stderr] == [], done.stderr


def test_an_old_kubernetes_is_refused(go_programs: Programs) -> None:
    """The oldest of the supported minors is named."""
    done = helm(go_programs, "template", "penstock", str(CHART), "--kube-version", "1.30.0")
    assert done.returncode != 0
    assert "1.34" in done.stderr


def test_right_values_of_every_kind_pass(go_programs: Programs) -> None:
    """The schema must not refuse what works: a digest, a policy with a scale, keys, quantities of each form."""
    values = [
        f"image.digest={DIGEST}",
        "image.repository=registry.local:5000/team/penstock",
        "router.policy=block-cost:1.5",
        "router.resources.limits.cpu=1500m",
        "router.resources.requests.memory=1.5Gi",
        "operator.resources.limits.cpu=2",
        "apiKeys.keys.sk-1.tenant=a",
        "redis.bundled.enabled=false",
        "redis.existing.name=team-redis",
        "fullnameOverride=p",
        "autoscaler.enabled=false",
    ]
    done = helm(go_programs, "template", "penstock", str(CHART), *(word for value in values for word in ("--set", value)))
    assert done.returncode == 0, done.stderr
    assert f"image: registry.local:5000/team/penstock@{DIGEST}" in done.stdout
