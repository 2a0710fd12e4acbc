"""The rights that the chart gives the operator, under the real authorizer: enough, and none too many.

That they are enough is asked of every test of this room (conftest). Here: that each is used in a ModelService's life, and that
nothing else can be done with them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from control_plane import Object, accepted, wait_until
from penstock_core.api_terms import API_VERSION
from penstock_operator.rights import LEASE_RULES, RULES
from test_on_api_server import CORE, View, model_service, view

from tests.operator.conftest import SYSTEM, chart_account

__all__ = ["view"]  # a fixture

RBAC = "rbac.authorization.k8s.io/v1"
NO_CALL = {
    (group, plural, "update")
    for group, plural in [("serving.penstock.dev", "modelservices/finalizers"), ("serving.penstock.dev", "workerpools/finalizers")]
}
"""Asked for by the admission of owner references, not by a request: see the last test."""


def granted() -> set[tuple[str, str, str]]:
    """(group, resource, verb) of all rules."""
    rules = [*RULES, *LEASE_RULES]
    return {
        (group, plural, verb) for rule in rules for group in rule["apiGroups"] for plural in rule["resources"] for verb in rule["verbs"]
    }


def used(events: list[Object]) -> set[tuple[str, str, str]]:
    """The same of what was asked for and answered. A server-side apply that made an object used the right to create as well."""
    found = set()
    for event in events:
        what = event.get("objectRef", {})
        plural = what.get("resource", "") + (f"/{what['subresource']}" if what.get("subresource") else "")
        found.add((what.get("apiGroup", ""), plural, event["verb"]))
        if event["verb"] == "patch" and event.get("responseStatus", {}).get("code") == 201:
            found.add((what.get("apiGroup", ""), plural, "create"))
    return found


def test_every_right_is_used_in_a_life(view: View, start_operator: Callable[..., Any]) -> None:
    """Created, scaled in with a drain, rolled out, a pool taken out: by the audit log each rule was needed, and none is a wildcard."""
    assert not any("*" in right for right in granted())
    operator = start_operator(view.plane, namespace=view.namespace, watch_namespace=view.namespace)
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
    unused = granted() - NO_CALL - used(view.plane.audited())
    assert unused == set()


@pytest.mark.parametrize("path", ["secrets", "configmaps", "serviceaccounts", "nodes", "deployments"])
def test_it_may_not_list_what_is_none_of_its_business(view: View, path: str) -> None:
    """Other people's Secrets cannot be listed with its rights."""
    kubeconfig = chart_account(view.plane)
    said = view.plane.kubectl("get", path, "-n", view.namespace, check=False, kubeconfig=kubeconfig)
    assert "cannot list resource" in said


def test_it_may_touch_no_lease_but_its_own(view: View) -> None:
    """In its own namespace, where other components may have theirs."""
    kubeconfig = chart_account(view.plane)
    said = view.plane.kubectl("get", "lease", "another", "-n", SYSTEM, check=False, kubeconfig=kubeconfig)
    assert "cannot get resource" in said


def grant(view: View, name: str, rules: list[Object]) -> Path:
    """An account of the test's own with these rights in its namespace; gives its kubeconfig."""
    place = {"name": name, "namespace": view.namespace}
    accepted(view.plane.client.post(f"{CORE}/namespaces/{view.namespace}/serviceaccounts", json={"metadata": place}))
    role = {"apiVersion": RBAC, "kind": "Role", "metadata": place, "rules": rules}
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    binding = {
        "apiVersion": RBAC,
        "kind": "RoleBinding",
        "metadata": place,
        "roleRef": ref,
        "subjects": [{"kind": "ServiceAccount", **place}],
    }
    for body in (role, binding):
        accepted(view.plane.apply(body))
    return view.plane.service_account_kubeconfig(view.namespace, name)


@pytest.mark.parametrize("kind", ["ModelService", "WorkerPool"])
def test_without_the_right_to_finalizers_what_it_owns_is_refused(view: View, kind: str) -> None:
    """Where owner references are checked, as they are here: so these two rules are needed, though no request names them."""
    owner = {"apiVersion": API_VERSION, "kind": kind, "name": "llama", "uid": "u1", "controller": True, "blockOwnerDeletion": True}
    metadata = {"name": "owned", "namespace": view.namespace, "ownerReferences": [owner]}
    service = json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"clusterIP": "None"}})
    right = f"{kind.lower()}s/finalizers"
    accounts = {"whole": [*RULES], "less": [rule for rule in RULES if rule["resources"] != [right]]}
    said = {
        name: view.plane.kubectl("apply", "--server-side", "-f", "-", stdin=service, check=False, kubeconfig=grant(view, name, rules))
        for name, rules in accounts.items()
    }
    assert "cannot set blockOwnerDeletion" in said["less"]
    assert "serverside-applied" in said["whole"]
