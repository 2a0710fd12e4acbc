"""Watches that fail in every way but the one that Kopf expects (410): nothing is lost, and the process goes on."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from control_plane import accepted, wait_until
from faulty_proxy import FaultyProxy, error_event, garbage, half_a_line, reset
from test_on_api_server import CORE, View, model_service, view

__all__ = ["view"]  # a fixture

FAULTS = {
    "410": error_event(410, "Expired"),
    "500": error_event(500, "InternalError"),
    "403": error_event(403, "Forbidden"),
    "429": error_event(429, "TooManyRequests"),
    "no JSON": garbage,
    "half a line": half_a_line,
    "reset": reset,
}


@pytest.fixture
def proxy(view: View, tmp_path: Path) -> Iterator[FaultyProxy]:
    made = FaultyProxy(view.plane, tmp_path)
    yield made
    made.close()


def test_whatever_a_watch_says_nothing_is_missed(view: View, proxy: FaultyProxy, start_operator: Callable[..., Any]) -> None:
    """Each fault in turn on the watch of Pods, and a Pod deleted right then: it is replaced, by the same process."""
    operator = start_operator(view.plane, kubeconfig=proxy.kubeconfig, namespace=view.namespace, watch_namespace=view.namespace)
    operator.wait_leading()
    accepted(view.plane.apply(model_service(view.namespace)))
    view.wait_ready()
    for name, fault in FAULTS.items():
        broken = wait_until(f"{name}: a watch to break", lambda fault=fault: proxy.break_watches("pods", fault))
        assert broken >= 1
        proxy.refuse("pods", 503, 429, 500)  # and it is not let in again at once
        victim = view.pods("decode")[0]["metadata"]
        accepted(view.plane.client.delete(f"{CORE}/namespaces/{view.namespace}/pods/{victim['name']}", params={"gracePeriodSeconds": 0}))

        def replaced(uid: str = victim["uid"]) -> bool:
            left = [pod for pod in view.pods("decode") if not pod["metadata"].get("deletionTimestamp")]
            return len(left) == 2 and uid not in {pod["metadata"]["uid"] for pod in left}

        wait_until(f"after {name}: the Pod is replaced", replaced)
        assert operator.child.ended() is None, name
    assert proxy.refused >= len(FAULTS)
    wait_until("four Pods are known", lambda: operator.metric("penstock_operator_objects", kind="Pod") == 4)
