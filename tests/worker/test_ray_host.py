"""One real local Ray: workers as named actors, killed and restarted, and nothing left behind."""

import asyncio
import os
import signal
import time

import httpx
import psutil
import pytest
from penstock_core.endpoint import Role
from penstock_dataplane.loop import run
from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.fleet import Fleet
from penstock_worker.fleet_plan import FleetLimits, Phase

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray

WAIT_S = 120


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_workers_live_in_named_actors_and_come_back_after_a_kill(tmp_path):
    """Up under Ray, answering over HTTP; kill -9 brings a new epoch in seconds; scale-in drains; stop leaves no process."""
    from penstock_worker.ray_host import RayHost

    before = {process.pid for process in psutil.Process().children(recursive=True)}
    seen: set[int] = set()

    async def story():
        pools = {"both": WorkerConfig(model="m", role=Role.BOTH, speed=50.0, drain_s=WAIT_S)}
        host = RayHost(tmp_path, WorkerSecrets(chunk_secret=3, fleet_token="fleet"))
        fleet = Fleet(host, pools, fleet_token="fleet", limits=FleetLimits(drain_s=WAIT_S))
        await fleet.open()
        try:
            fleet.scale("both", 2)
            await fleet.wait_settled(WAIT_S)
            first, second = fleet.status()
            assert await host.call(lambda: {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}) == {
                "both-0",
                "both-1",
            }
            async with httpx.AsyncClient(timeout=WAIT_S) as client:
                body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
                for worker in (first, second):
                    answer = await client.post(f"{worker.url}/v1/chat/completions", json=body)
                    assert answer.status_code == 200
                    assert answer.json()["usage"]["completion_tokens"] == 5
            os.kill(first.pid, signal.SIGKILL)
            killed_s = time.monotonic()
            await until(lambda: fleet.status()[0].restarts == 1)
            await fleet.wait_settled(WAIT_S)
            back_s = time.monotonic() - killed_s
            again = fleet.status()[0]
            assert (again.phase, again.state.restarts) == (Phase.READY, 1)
            assert again.state.epoch != first.state.epoch
            assert again.pid != first.pid
            assert back_s < 60
            seen.update(process.pid for process in psutil.Process().children(recursive=True))
            fleet.scale("both", 1)
            await until(lambda: [worker.id for worker in fleet.status()] == ["both-0"])
            assert not psutil.pid_exists(second.pid)
        finally:
            await fleet.aclose(drain=False)

    run(story())
    deadline_s = time.monotonic() + WAIT_S
    while left := [pid for pid in seen - before if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline_s, [psutil.Process(pid).cmdline()[:4] for pid in left]
        time.sleep(0.1)
    assert seen - before
