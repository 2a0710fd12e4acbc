"""The operator with exactly the rights it says it needs, under the real authorizer."""

from collections.abc import Callable
from typing import Any

import pytest
from control_plane import accepted, wait_until
from penstock_operator.rights import LEASE_RULES, RULES
from test_on_api_server import CORE, View, model_service, view

__all__ = ["view"]  # a fixture

RBAC = "rbac.authorization.k8s.io/v1"


def grant(view: View, rules: list[dict[str, Any]]) -> None:
    """A ServiceAccount `operator` in the test's namespace with these rights there."""
    place = {"name": "operator", "namespace": view.namespace}
    accepted(view.plane.client.post(f"{CORE}/namespaces/{view.namespace}/serviceaccounts", json={"metadata": place}))
    role = {"apiVersion": RBAC, "kind": "Role", "metadata": place, "rules": rules}
    binding = {
        "apiVersion": RBAC,
        "kind": "RoleBinding",
        "metadata": place,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
        "subjects": [{"kind": "ServiceAccount", **place}],
    }
    for body in (role, binding):
        accepted(view.plane.apply(body))


def test_a_whole_life_under_its_own_service_account(view: View, start_operator: Callable[..., Any]) -> None:
    """Created, scaled in with a drain, rolled out, a pool taken out: nothing is forbidden, and no right is a wildcard."""
    rules = [*RULES, *LEASE_RULES]
    assert not any("*" in value for rule in rules for values in rule.values() for value in values)
    grant(view, rules)
    kubeconfig = view.plane.service_account_kubeconfig(view.namespace, "operator")
    operator = start_operator(view.plane, kubeconfig=kubeconfig, namespace=view.namespace, watch_namespace=view.namespace)
    operator.wait_leading()
    accepted(view.plane.apply(model_service(view.namespace)))
    view.wait_ready()
    view.plane.kubectl("scale", "workerpool", "llama-decode", "--replicas=1", "-n", view.namespace)
    wait_until("one is left", lambda: len(view.pods("decode")) == 1)
    renamed = [{"name": "prefill", "role": "Prefill", "replicas": 1}, {"name": "decode2", "role": "Decode", "replicas": 2}]
    accepted(view.plane.apply(model_service(view.namespace, pools=renamed, engine={"type": "Sim", "image": "penstock:2"})))
    wait_until("the old pool is gone", lambda: not view.pods("decode") and view.images("decode2") == ["penstock:2"] * 2)
    wait_until("complete", lambda: view.condition("Progressing").get("reason") == "Complete")
    forbidden = [line for line in operator.logged() if "forbidden" in str(line).lower() or line["level"] == "error"]
    assert forbidden == []


@pytest.mark.parametrize("path", ["secrets", "configmaps", "serviceaccounts"])
def test_it_may_not_list_what_is_none_of_its_business(view: View, path: str) -> None:
    """Other people's Secrets cannot be listed with its rights."""
    grant(view, [*RULES, *LEASE_RULES])
    kubeconfig = view.plane.service_account_kubeconfig(view.namespace, "operator")
    said = view.plane.kubectl("get", path, "-n", view.namespace, check=False, kubeconfig=kubeconfig)
    assert "cannot list resource" in said
