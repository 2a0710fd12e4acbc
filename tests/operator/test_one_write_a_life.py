"""On the real API server: an operator that is ended after every write it makes, and begins anew each time, comes to the same end."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from control_plane import ControlPlane, accepted
from penstock_operator.api_server import ApiServer, Gone, login
from penstock_operator.cache import Cache
from penstock_operator.config import OperatorConfig, OperatorSecrets
from penstock_operator.drain import Drainer
from penstock_operator.kinds import MADE, WATCHED
from penstock_operator.metrics import OperatorMetrics
from penstock_operator.names import MANAGED_SELECTOR
from penstock_operator.reconcile import Reconciler
from test_on_api_server import APPS, CORE, OURS, View, model_service, view

__all__ = ["view"]  # a fixture


class Ended(BaseException):
    """The operator's process ended here."""


class OneWrite:
    """An API server that ends its caller after the first write; `writes` says what was written over all lives."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self.writes: list[str] = []

    async def apply(self, kind: Any, body: Any, **options: Any) -> dict[str, Any]:
        await self._server.apply(kind, body, **options)
        self._end(f"{options.get('subresource') or 'apply'} {kind.kind} {body['metadata']['name']}")
        return {}

    async def delete(self, kind: Any, namespace: str, name: str, uid: str) -> dict[str, Any]:
        try:
            await self._server.delete(kind, namespace, name, uid)
        except Gone:
            raise
        self._end(f"delete {kind.kind} {name}")
        return {}

    async def read(self, kind: Any, namespace: str, name: str) -> dict[str, Any] | None:
        return await self._server.read(kind, namespace, name)

    def _end(self, written: str) -> None:
        self.writes.append(written)
        raise Ended


async def lives_until(
    server: ApiServer, once: OneWrite, key: tuple[str, str], done: Callable[[], bool], most_writes: int | None = None
) -> None:
    """Life after life, each from a fresh listing, until `done` and a whole life writes nothing, or until so many writes."""
    first = len(once.writes)
    async with asyncio.timeout(120):
        while True:
            cache = Cache(WATCHED)
            for kind in WATCHED:
                cache.replace(kind, *await server.list(kind, key[0], MANAGED_SELECTOR if kind in MADE else ""))
            drainer = Drainer("t" * 32, lambda _: None)
            config = OperatorConfig(image="penstock:1", status_interval_s=0.0)
            reconciler = Reconciler(cache, once, drainer, config, OperatorSecrets(fleet_token="t" * 32), OperatorMetrics(), clock=time.time)
            try:
                await reconciler(key)
                if done():
                    return
                await asyncio.sleep(0.05)  # kwok and the controllers are at work
            except Ended:
                if most_writes is not None and len(once.writes) - first >= most_writes:
                    return
            finally:
                await drainer.aclose()


def test_a_deletion_amid_the_writes_of_a_rollout_leaves_nothing(view: View) -> None:
    """The service is deleted after 1, 2, 3, … writes of a rollout, and lives of one write go on: each time nothing is left in the end."""
    plane, key = view.plane, (view.namespace, "llama")
    pools = [{"name": "all", "role": "Both", "replicas": 1}]
    gone = f"{OURS}/namespaces/{view.namespace}/modelservices/llama"

    def nothing() -> bool:
        kept = [raw for raw in view.get(f"{CORE}//secrets")["items"] if raw["metadata"]["name"] == "llama-workers"]
        return not (kept or view.pods() or view.get(f"{OURS}//workerpools")["items"] or view.get(f"{APPS}//controllerrevisions")["items"])

    def rolled() -> bool:
        return view.images("all") == ["penstock:2"] and view.condition("Progressing").get("reason") == "Complete"

    async def story() -> int:
        server = ApiServer(await login(str(plane.kubeconfig), {}))
        await server.open()
        writes = 0
        while True:
            once = OneWrite(server)
            accepted(plane.apply(model_service(view.namespace, pools=pools, drain={"deadlineSeconds": 1})))
            await lives_until(server, once, key, lambda: view.condition("Progressing").get("reason") == "Complete")
            image = {"type": "Sim", "image": "penstock:2"}
            accepted(plane.apply(model_service(view.namespace, pools=pools, drain={"deadlineSeconds": 1}, engine=image)))
            writes += 1
            await lives_until(server, once, key, rolled, most_writes=writes)
            finished = rolled()
            accepted(plane.client.delete(gone))
            await lives_until(server, once, key, nothing)
            if finished:
                await server.aclose()
                return writes

    assert asyncio.run(story()) >= 5


def test_an_operator_that_lives_for_one_write_at_a_time(view: View) -> None:
    """Creation, scale-out, rollout, scale-in: as many lives as writes, and the end is as with a single life, with no Pod too many."""
    plane: ControlPlane = view.plane
    key = (view.namespace, "llama")
    most = 0

    def pods(images: str, prefill: int, decode: int) -> Callable[[], bool]:
        def done() -> bool:
            nonlocal most
            there = {pool: [p for p in view.pods(pool) if not p["metadata"].get("deletionTimestamp")] for pool in ("prefill", "decode")}
            most = max(most, len(there["prefill"]), len(there["decode"]))
            all_images = {p["spec"]["containers"][0]["image"] for found in there.values() for p in found}
            settled = view.condition("Progressing").get("reason") == "Complete" and view.condition("Draining").get("status") == "False"
            return settled and all_images == {images} and (len(there["prefill"]), len(there["decode"])) == (prefill, decode)

        return done

    async def story() -> list[str]:
        server = ApiServer(await login(str(plane.kubeconfig), {}))
        await server.open()
        once = OneWrite(server)
        pools = [{"name": "prefill", "role": "Prefill", "replicas": 1}, {"name": "decode", "role": "Decode", "replicas": 1}]
        accepted(plane.apply(model_service(view.namespace, pools=pools, drain={"deadlineSeconds": 1})))
        await lives_until(server, once, key, pods("penstock:1", 1, 1))
        plane.kubectl("scale", "workerpool", "llama-decode", "--replicas=2", "-n", view.namespace)
        await lives_until(server, once, key, pods("penstock:1", 1, 2))
        image = {"type": "Sim", "image": "penstock:2"}
        accepted(plane.apply(model_service(view.namespace, pools=pools, drain={"deadlineSeconds": 1}, engine=image)))
        await lives_until(server, once, key, pods("penstock:2", 1, 2))
        plane.kubectl("scale", "workerpool", "llama-decode", "--replicas=1", "-n", view.namespace)
        await lives_until(server, once, key, pods("penstock:2", 1, 1))
        await server.aclose()
        return once.writes

    writes = asyncio.run(story())
    assert len(writes) > 30, writes  # how many are of statuses depends on how busy the machine is
    made = [written for written in writes if written.startswith("apply Pod")]
    assert most <= 3 and len([name for name in made if made.count(name) == 1]) >= 3
    assert len(view.get(f"{APPS}//controllerrevisions")["items"]) == 1
    assert {raw["metadata"]["name"] for raw in view.get(f"{OURS}//workerpools")["items"]} == {"llama-prefill", "llama-decode"}
    assert len(view.get(f"{CORE}//services")["items"]) == 1
