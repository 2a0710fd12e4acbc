"""Measures the operator on a real API server: 1,000 ModelServices of two pools each, with nodes and Pods played by kwok.

`make bench-operator`, or `python -m benchmarks.operator_scale`; `--services 20 --rounds 1 --seconds 5` makes a short run. Each round
takes two fresh control planes: on one the operator's server-side applies are replayed by a bare client, on the other the operator
makes them; then it is left alone, started anew, and given 50 status changes of Pods a second. It needs Go, or the programs that
KUBEBUILDER_ASSETS names. (Not `operator.py`: started by its path, that would stand in for the standard library's `operator`.)
"""

import argparse
import asyncio
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from kubernetes.aio.client import Configuration
from penstock_cli.redis_server import RedisServer
from penstock_operator.api_server import ApiServer, authorization, login, new_session
from penstock_operator.config import OperatorConfig, OperatorSecrets
from penstock_operator.kinds import MODEL_SERVICE, POD, WATCHED

from benchmarks.cpu import cpu_of
from benchmarks.operator_process import OperatorUnderTest, applies, operator, total
from benchmarks.operator_replay import NAMESPACE, Recorded, converged, model_service, name_of, record, replay
from benchmarks.table import Row, keep, show

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "cluster"))  # the test bed is a program beside the packages

from cluster_fixtures import CRD_FILES  # noqa: E402
from component_flags import API_SERVER, ETCD  # noqa: E402
from control_plane import ControlPlane, accepted  # noqa: E402
from go_programs import programs  # noqa: E402

AT_A_TIME = 16
"""ModelServices that a replay makes side by side, and that the operator reconciles by default."""
PODS_A_NODE = 1_000
CHANGES_A_SECOND = 50
_SETTLED_S = 3.0
_PATIENCE_S = 1_800.0

Figures = dict[str, float]


@contextmanager
def plane(services: int) -> Iterator[ControlPlane]:
    """A fresh control plane with room for all Pods and an empty namespace."""
    with ControlPlane(programs(say), CRD_FILES) as made:
        for number in range(1 + 2 * services // PODS_A_NODE):
            made.add_fake_node(f"bench-{number}", pods=str(PODS_A_NODE + 100), cpu="4096", memory="4096Gi")
        accepted(made.client.post("/api/v1/namespaces", json={"metadata": {"name": NAMESPACE}}))
        yield made


def say(line: str) -> None:
    """A line of progress, over the one before it on a terminal."""
    print(line, file=sys.stderr, end="\r" if sys.stderr.isatty() else "\n", flush=True)


class Progress:
    """Tells of every tenth part."""

    def __init__(self, what: str, of: int) -> None:
        self._what, self._of, self._began = what, of, time.perf_counter()

    def __call__(self, done: int) -> None:
        if done % max(1, self._of // 10) == 0:
            say(f"   {self._what}: {done}/{self._of} after {time.perf_counter() - self._began:.0f} s")


async def client_of(made: ControlPlane) -> tuple[Configuration, ApiServer]:
    """The operator's own client, as the cluster's admin."""
    configuration = await login(str(made.kubeconfig), {})
    server = ApiServer(configuration)
    await server.open()
    return configuration, server


async def recorded_writes(config: OperatorConfig, tokens: OperatorSecrets) -> list[Recorded]:
    """What is applied for one ModelService."""
    with plane(1) as made:
        configuration = await login(str(made.kubeconfig), {})
        return await record(configuration, config, tokens)


async def replayed(recorded: list[Recorded], services: int) -> Figures:
    """Seconds of the bare replay, and what it cost the API server."""
    with plane(services) as made:
        _, server = await client_of(made)
        cpu_before, began, mine = _server_cpu_s(made), time.perf_counter(), time.process_time()
        await replay(server, recorded, services, AT_A_TIME, Progress("replay", services))
        taken_s = time.perf_counter() - began
        await server.aclose()
        server_s = _server_cpu_s(made) - cpu_before
        return {"replay_s": taken_s, "replay_server_cpu_s": server_s, "replay_cpu_s": server_s + time.process_time() - mine}


async def converge(made: ControlPlane, services: int) -> float:
    """Apply so many ModelServices as a user would; seconds until the last of them has converged."""
    configuration, server = await client_of(made)
    listening = asyncio.create_task(_all_converged(configuration, services, Progress("operator", services)))
    await asyncio.sleep(0)
    began, numbers = time.perf_counter(), iter(range(services))

    async def user() -> None:
        for number in numbers:
            await server.apply(MODEL_SERVICE, model_service(name_of(number)), manager="user")

    try:
        async with asyncio.TaskGroup() as users:
            for _ in range(AT_A_TIME):
                users.create_task(user())
        async with asyncio.timeout(_PATIENCE_S):
            await listening
        return time.perf_counter() - began
    finally:
        listening.cancel()
        await server.aclose()


async def _all_converged(configuration: Configuration, services: int, progress: Progress) -> None:
    """Watch the ModelServices from the beginning until so many have converged."""
    done: set[str] = set()
    session = await new_session(configuration, connections=1, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=1 << 20)
    url = f"{configuration.host}{MODEL_SERVICE.path(NAMESPACE)}?watch=1&timeoutSeconds=3600"
    try:
        while len(done) < services:  # the server ends a watch when it likes; each begins with what is there
            async with session.get(url, headers=await authorization(configuration)) as stream:
                while len(done) < services and (line := await stream.content.readline()):
                    found = msgspec.json.decode(line)["object"]
                    if converged(found) and found["metadata"]["name"] not in done:
                        done.add(found["metadata"]["name"])
                        progress(len(done))
    finally:
        await session.close()


async def change(made: ControlPlane, seed: int, seconds: float) -> int:
    """Take Ready from a Pod drawn by lot, 50 times a second; kwok gives it back. Gives how many were changed."""
    configuration, server = await client_of(made)
    names = [raw["metadata"]["name"] for raw in (await server.list(POD, NAMESPACE, ""))[0]]
    drawn = random.Random(seed)
    count = round(CHANGES_A_SECOND * seconds)
    body = msgspec.json.encode({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Benchmark"}]}})
    session = await new_session(configuration, connections=64)
    headers = {**await authorization(configuration), "content-type": "application/strategic-merge-patch+json"}
    began = time.perf_counter()

    async def one(at_s: float) -> None:
        await asyncio.sleep(max(0.0, began + at_s - time.perf_counter()))
        url = f"{configuration.host}{POD.path(NAMESPACE, drawn.choice(names))}/status"
        async with session.patch(url, data=body, headers=headers) as answer:
            if answer.status >= 300:
                raise RuntimeError(f"PATCH {url}: {answer.status} {await answer.text()}")

    try:
        async with asyncio.TaskGroup() as changes:
            for number in range(count):
                changes.create_task(one(number / CHANGES_A_SECOND))
    finally:
        await session.close()
        await server.aclose()
    return count


def brought_up(made: ControlPlane, running: OperatorUnderTest, services: int) -> Figures:
    """All ModelServices made while the operator leads."""
    cpu_before, server_before = running.cpu_s(), _server_cpu_s(made)
    figures: Figures = {"converge_s": asyncio.run(converge(made, services))}
    figures["converge_server_cpu_s"] = _server_cpu_s(made) - server_before
    figures["converge_cpu_s"] = running.cpu_s() - cpu_before
    running.wait_figure("penstock_operator_unregistered_workers", 2.0 * services)  # the registry has been looked at: one more status each
    running.wait_quiet(_SETTLED_S)
    figures["memory_mb"], figures["memory_peak_mb"] = running.memory_mb()
    said = running.figures()
    children = sum(total(said, "penstock_operator_objects", kind=kind.kind) for kind in WATCHED if kind is not MODEL_SERVICE) + services
    figures["children"] = children  # with one Secret a service, which no watch counts
    service_statuses = total(said, "penstock_operator_writes_total", kind="ModelService", verb="status")
    figures["writes_a_child"] = (total(said, "penstock_operator_writes_total") - service_statuses) / children
    figures["statuses_a_service"] = service_statuses / services
    figures["reconciles_a_service"] = total(said, "penstock_operator_reconcile_seconds_count") / services
    return figures


def left_alone(made: ControlPlane, running: OperatorUnderTest, seconds: float) -> Figures:
    """Nothing changes: CPU share and server-side applies, as the API server counts them."""
    cpu_before, applies_before = running.cpu_s(), applies(_api_server_says(made))
    began = time.perf_counter()
    time.sleep(seconds)
    share = 100 * (running.cpu_s() - cpu_before) / (time.perf_counter() - began)
    return {"idle_percent": share, "idle_writes": applies(_api_server_says(made)) - applies_before}


def changed(made: ControlPlane, running: OperatorUnderTest, seed: int, seconds: float) -> Figures:
    """Pods lose and get back Ready, 50 a second."""
    cpu_before, writes_before = running.cpu_s(), total(running.figures(), "penstock_operator_writes_total")
    began = time.perf_counter()
    count = asyncio.run(change(made, seed, seconds))
    ended = time.perf_counter()
    settled_s = running.wait_quiet(_SETTLED_S) - ended
    share = 100 * (running.cpu_s() - cpu_before) / (ended - began)
    writes = total(running.figures(), "penstock_operator_writes_total") - writes_before
    return {
        "change_percent": share,
        "change_writes": writes / count,
        "change_settled_s": max(0.0, settled_s),
        "change_rate": count / (ended - began),
        "change_memory_mb": running.memory_mb()[0],
    }


def measured(folder: Path, services: int, seed: int, seconds: float, config: dict[str, Any], secret: dict[str, str]) -> Figures:
    """One operator's life on a fresh control plane."""
    with plane(services) as made:
        told = {"namespace": NAMESPACE} | config | {"kubeconfig": str(made.kubeconfig)}
        with operator(folder / "first", told, secret) as running:
            figures = brought_up(made, running, services)
            say(f"   operator: left alone for {seconds:g} s")
            figures |= left_alone(made, running, seconds)
            figures["errors"] = float(running.log_lines("error"))
        say("   operator: started anew")
        before = applies(_api_server_says(made))
        with operator(folder / "second", told, secret) as again:
            figures["restart_s"] = again.wait_quiet(_SETTLED_S) - again.began
            figures["restart_cpu_s"] = again.cpu_s()
            figures["restart_writes"] = applies(_api_server_says(made)) - before
            figures["restart_memory_mb"], figures["restart_memory_peak_mb"] = again.memory_mb()
            say(f"   operator: {CHANGES_A_SECOND} changes a second for {seconds:g} s")
            figures |= changed(made, again, seed, seconds)
            figures["errors"] += again.log_lines("error")
        return figures


def rows_of(rounds: list[Figures], services: int) -> list[Row]:
    """The table."""

    def row(name: str, unit: str, figure: str, goal: float | None = None, note: str = "") -> Row:
        return Row(name, unit, tuple(one[figure] for one in rounds), goal, note)

    children = f"{rounds[0]['children'] / services:g} children each"
    ratios = tuple(one["converge_s"] / one["replay_s"] for one in rounds)
    cpu_ratios = tuple((one["converge_cpu_s"] + one["converge_server_cpu_s"]) / one["replay_cpu_s"] for one in rounds)
    return [
        row(f"bare replay for {services} ModelServices", "s", "replay_s", note=f"{AT_A_TIME} at a time"),
        row(f"operator until {services} have converged", "s", "converge_s", note=children),
        Row("operator against bare replay", "×", ratios, 1.5),
        row("writes a child, WorkerPools' statuses among them", "", "writes_a_child", 2.0),
        row("status writes a ModelService", "", "statuses_a_service", 4.0),
        row("reconciles a ModelService", "", "reconciles_a_service"),
        row("CPU of the operator while converging", "s", "converge_cpu_s"),
        row("CPU of API server and etcd, operator", "s", "converge_server_cpu_s"),
        row("CPU of API server and etcd, replay", "s", "replay_server_cpu_s"),
        Row("CPU of client and servers, operator against replay", "×", cpu_ratios, note="where other work shares the cores"),
        row("memory when converged", "MB", "memory_mb", 250.0),
        row("memory at its most", "MB", "memory_peak_mb", 250.0),
        row("idle: CPU of a core", "%", "idle_percent", 2.0),
        row("idle: server-side applies", "", "idle_writes", 0.0, "as the API server counts them"),
        row("50 changes a second: CPU of a core", "%", "change_percent"),
        row("50 changes a second: reached", "/s", "change_rate"),
        row("50 changes a second: writes a change", "", "change_writes"),
        row("50 changes a second: at rest after", "s", "change_settled_s"),
        row("50 changes a second: memory", "MB", "change_memory_mb", 250.0),
        row("restart: from start to the last reconcile", "s", "restart_s"),
        row("restart: CPU", "s", "restart_cpu_s"),
        row("restart: server-side applies", "", "restart_writes", 0.0, "as the API server counts them"),
        row("restart: memory", "MB", "restart_memory_mb", 250.0),
        row("restart: memory at its most", "MB", "restart_memory_peak_mb", 250.0),
        row("errors in the log", "", "errors", 0.0),
    ]


def _api_server_says(made: ControlPlane) -> str:
    answer = made.client.get("/metrics")
    answer.raise_for_status()
    return answer.text


def _server_cpu_s(made: ControlPlane) -> float:
    """CPU seconds of API server and etcd."""
    return sum(cpu_of(made.pid(name)).total_s for name in (API_SERVER, ETCD))


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=1_000, help="ModelServices, two WorkerPools each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1, help="of the changes; a round adds its number")
    parser.add_argument("--seconds", type=float, default=60.0, help="of being left alone, and of changes")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the operator")
    parser.add_argument("--keep", default="operator", help="name of the file under benchmarks/results")
    asked = parser.parse_args()
    tokens = OperatorSecrets(fleet_token=secrets.token_hex(16), chunk_secret=secrets.token_hex(8))
    secret = {"PENSTOCK_FLEET_TOKEN": tokens.fleet_token, "PENSTOCK_CHUNK_SECRET": tokens.chunk_secret}
    config = {name: msgspec.yaml.decode(value) for name, _, value in (word.partition("=") for word in asked.set)}
    rounds = []
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as redis:
        secret["PENSTOCK_REDIS_URL"] = redis.url
        recorded = asyncio.run(recorded_writes(OperatorConfig(), tokens))
        say(f"recorded: {len(recorded)} server-side applies a ModelService")
        for number in range(asked.rounds):
            say(f"round {number + 1} of {asked.rounds}")
            figures = asyncio.run(replayed(recorded, asked.services))
            figures |= measured(Path(folder) / str(number), asked.services, asked.seed + number, asked.seconds, config, secret)
            rounds.append(figures)
            say(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    rows = rows_of(rounds, asked.services)
    show("operator", rows)
    print(keep(asked.keep, rows))


if __name__ == "__main__":
    main()
