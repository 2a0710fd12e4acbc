"""What an operator writes for one ModelService, recorded, and the same writes made for many by nothing but an HTTP client.

`operator_scale` compares the operator with this: a replay watches nothing, plans nothing and waits for no Pod. It runs in this
process, with the operator's own client.
"""

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kubernetes.aio.client import Configuration
from penstock_core.api_terms import API_VERSION
from penstock_operator.api_server import ApiServer
from penstock_operator.config import OperatorConfig, OperatorSecrets
from penstock_operator.health import Health
from penstock_operator.kinds import MODEL_SERVICE, ObjectKind
from penstock_operator.leading import Leading
from penstock_operator.metrics import OperatorMetrics
from penstock_operator.names import FIELD_MANAGER

NAMESPACE = "bench"
_RECORDED = "ms-recorded"
_PATIENCE_S = 300.0


def model_service(name: str) -> dict[str, Any]:
    """1P1D of the sim engine, a served model of its own."""
    pools = [{"name": "prefill", "role": "Prefill", "replicas": 1}, {"name": "decode", "role": "Decode", "replicas": 1}]
    spec = {"model": {"name": name}, "engine": {"type": "Sim"}, "pools": pools, "drain": {"deadlineSeconds": 5}}
    return {"apiVersion": API_VERSION, "kind": "ModelService", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def name_of(number: int) -> str:
    """As long as the recorded one's name, so that what is written has the same size."""
    return f"ms-{number:08d}"


def converged(service: Mapping[str, Any]) -> bool:
    """Ready, rolled out, and of the spec as it is."""
    status = service.get("status") or {}
    reasons = {condition["type"]: (condition["status"], condition["reason"]) for condition in status.get("conditions") or ()}
    return (
        status.get("observedGeneration") == service["metadata"]["generation"]
        and reasons.get("Ready", ("",))[0] == "True"
        and reasons.get("Progressing") == ("False", "Complete")
    )


class Recorded(NamedTuple):
    """One server-side apply: its body as JSON text with the recorded names and uids in it."""

    kind: ObjectKind
    body: str
    manager: str
    subresource: str
    uid: str
    """Of the object, as it was when recorded."""


class _Recorder(ApiServer):
    """The client of an operator, which keeps what was applied."""

    def __init__(self, configuration: Configuration) -> None:
        super().__init__(configuration)
        self.applied: list[Recorded] = []

    async def apply(
        self, kind: ObjectKind, body: Mapping[str, Any], *, manager: str = FIELD_MANAGER, subresource: str = ""
    ) -> dict[str, Any]:
        answer = await super().apply(kind, body, manager=manager, subresource=subresource)
        lean = {**body, "metadata": {name: value for name, value in body["metadata"].items() if name != "resourceVersion"}}
        self.applied.append(Recorded(kind, json.dumps(lean), manager, subresource, answer["metadata"]["uid"]))
        return answer


async def record(configuration: Configuration, config: OperatorConfig, secrets: OperatorSecrets) -> list[Recorded]:
    """Let an operator in this process bring up one ModelService; gives what it and its user applied, in order."""
    server = _Recorder(configuration)
    await server.open()
    leading = asyncio.create_task(Leading(configuration, server, config, secrets, OperatorMetrics(), Health()).run())
    try:
        await server.apply(MODEL_SERVICE, model_service(_RECORDED), manager="user")
        async with asyncio.timeout(_PATIENCE_S):
            while not converged(await server.read(MODEL_SERVICE, NAMESPACE, _RECORDED) or {"metadata": {"generation": 0}}):
                if leading.done():
                    await leading
                await asyncio.sleep(0.1)
        await asyncio.sleep(3 * config.status_interval_s)  # a last WorkerPool's status
    finally:
        leading.cancel()
        await asyncio.wait((leading,))
        await server.aclose()
    return server.applied


async def replay(server: ApiServer, recorded: list[Recorded], services: int, at_a_time: int, progress: Callable[[int], None]) -> None:
    """Make the same writes for so many services, `at_a_time` side by side, each one's in their order."""
    numbers, done = iter(range(services)), itertools.count(1)

    async def client() -> None:
        for number in numbers:
            await _one(server, recorded, name_of(number))
            progress(next(done))

    async with asyncio.TaskGroup() as clients:
        for _ in range(at_a_time):
            clients.create_task(client())


async def _one(server: ApiServer, recorded: list[Recorded], name: str) -> None:
    uids: dict[str, str] = {}
    for write in recorded:
        text = write.body.replace(_RECORDED, name)
        for old, new in uids.items():
            text = text.replace(old, new)
        answer = await server.apply(write.kind, json.loads(text), manager=write.manager, subresource=write.subresource)
        uids[write.uid] = answer["metadata"]["uid"]
