"""A fleet of real worker processes: up, killed and back under a new epoch, drained before removal, nothing left behind."""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from penstock_core.endpoint import Role
from penstock_dataplane.loop import run
from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.fleet import Fleet
from penstock_worker.fleet_plan import FleetLimits, Phase
from penstock_worker.process_host import ProcessHost

WAIT_S = 60
SECRETS = WorkerSecrets(chunk_secret=3, fleet_token="fleet")
POOLS = {
    "prefill": WorkerConfig(model="m", role=Role.PREFILL, speed=20.0),
    "decode": WorkerConfig(model="m", role=Role.DECODE, speed=2.0, drain_s=WAIT_S),
}


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def fleet_of(host, **desired):
    fleet = Fleet(host, POOLS, fleet_token="fleet", limits=FleetLimits(drain_s=WAIT_S))
    await fleet.open()
    try:
        for pool, count in desired.items():
            fleet.scale(pool, count)
        await fleet.wait_settled(WAIT_S)
        yield fleet
    finally:
        await fleet.aclose(drain=False)


def workers(fleet):
    return {worker.id: worker for worker in fleet.status()}


def test_a_killed_worker_comes_back_under_a_new_epoch(tmp_path, caplog):
    """kill -9 of a worker's process: the fleet says how it ended and starts it anew; in the end no process is left."""

    async def story():
        async with fleet_of(ProcessHost(tmp_path, SECRETS), prefill=1, decode=1) as fleet:
            before = workers(fleet)
            assert {name: (worker.phase, worker.restarts) for name, worker in before.items()} == {
                "prefill-0": (Phase.READY, 0),
                "decode-0": (Phase.READY, 0),
            }
            os.kill(before["decode-0"].pid, signal.SIGKILL)
            await until(lambda: workers(fleet)["decode-0"].restarts == 1)
            await fleet.wait_settled(WAIT_S)
            after = workers(fleet)
            assert after["decode-0"].state.epoch != before["decode-0"].state.epoch
            assert after["decode-0"].state.restarts == 1
            assert after["prefill-0"].pid == before["prefill-0"].pid
            assert '"message":"ready"' in (tmp_path / "decode-0.log").read_text()
            return [worker.pid for worker in (*before.values(), *after.values())]

    pids = run(story())
    assert not [pid for pid in pids if alive(pid)]
    assert [one.facts["why"].endswith("ended with status -9") for one in caplog.records if one.getMessage() == "a worker ended"] == [True]


def test_scale_in_lets_a_running_stream_end(tmp_path):
    """A removed worker drains: its stream ends whole, then the process goes and the fleet forgets it."""

    async def story():
        async with fleet_of(ProcessHost(tmp_path, SECRETS), decode=1) as fleet:
            worker = workers(fleet)["decode-0"]
            body = {"model": "m", "stream": True, "max_tokens": 100, "messages": [{"role": "user", "content": "go"}]}
            async with httpx.AsyncClient(timeout=WAIT_S) as client:
                async with client.stream("POST", f"{worker.url}/v1/chat/completions", json=body) as answer:
                    pieces = answer.aiter_bytes()
                    await anext(pieces)
                    fleet.scale("decode", 0)
                    await until(lambda: workers(fleet)["decode-0"].phase is Phase.DRAINING)
                    rest = b"".join([piece async for piece in pieces])
                assert rest.endswith(b"data: [DONE]\n\n")
            await until(lambda: not fleet.status())
            assert not alive(worker.pid)

    run(story())


def test_workers_end_with_the_process_that_started_them(tmp_path):
    """kill -9 of the fleet's own process leaves no worker behind."""
    script = (
        "import asyncio, sys; from pathlib import Path\n"
        "from penstock_worker.process_host import ProcessHost\n"
        "from penstock_worker.config import WorkerConfig, WorkerSecrets\n"
        "async def main():\n"
        "    host = ProcessHost(Path(sys.argv[1]), WorkerSecrets())\n"
        "    worker = await host.start(WorkerConfig())\n"
        "    while worker.url is None and not worker.ended: await asyncio.sleep(0.02)\n"
        "    print(repr(worker.why()) if worker.ended else worker.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as parent:
        try:
            assert select.select([parent.stdout], [], [], WAIT_S)[0], f"nothing after {WAIT_S} s"
            said = parent.stdout.readline()
            assert said.strip().isdigit(), said
            pid = int(said)
            assert alive(pid)
        finally:
            parent.kill()
    run(until(lambda: not alive(pid)))


def test_a_worker_that_cannot_start_says_why(tmp_path):
    """A taken port: the fleet tells how the process ended, and tries again later."""

    async def story():
        listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        host = ProcessHost(tmp_path, SECRETS)
        worker = await host.start(WorkerConfig(id="w", port=port))
        await until(lambda: worker.ended)
        assert str(port) in worker.why()
        assert worker.url is None
        listener.close()
        await host.aclose()

    run(story())


@pytest.mark.parametrize(
    ("pool", "count", "message"), [("none", 1, "pool is 'none'; allowed: decode, prefill"), ("decode", -1, "0 or more")]
)
def test_a_wrong_scale_is_named(tmp_path, pool, count, message):
    """An unknown pool or a negative count is refused with what is allowed."""

    async def story():
        fleet = Fleet(ProcessHost(tmp_path, SECRETS), POOLS, fleet_token="")
        with pytest.raises(ValueError, match=message):
            fleet.scale(pool, count)
        await fleet.aclose()

    run(story())


def test_the_fleet_measures_its_starts_and_tries_one_anew_when_told(tmp_path):
    """A worker that never comes up is ended and started again; those that came up say when, and how their start went."""

    async def story():
        slow = {"slow": WorkerConfig(model="m", start_delay_s=3_000), "quick": WorkerConfig(model="m", speed=20.0)}
        fleet = Fleet(ProcessHost(tmp_path, SECRETS), slow, fleet_token="fleet", limits=FleetLimits(start_s=3_600))
        await fleet.open()
        try:
            fleet.scale("slow", 1)
            fleet.scale("quick", 1)
            await until(lambda: workers(fleet).get("quick-0") and workers(fleet)["quick-0"].ready_s is not None)
            assert workers(fleet)["slow-0"].ready_s is None
            quick = workers(fleet)["quick-0"]
            assert quick.ready_s > quick.asked_s
            phases = quick.state.start_up
            assert phases.process_s > 0
            assert phases.process_s + phases.engine_s == pytest.approx(phases.ready_s - phases.began_s, abs=1e-3)
            assert phases.ready_s - phases.began_s <= quick.ready_s - quick.asked_s + 1
            asked_s = workers(fleet)["slow-0"].asked_s
            fleet.restart("slow-0")
            fleet.restart("quick-0")
            await until(lambda: workers(fleet)["slow-0"].restarts == 1)
            assert workers(fleet)["slow-0"].asked_s > asked_s
            assert workers(fleet)["quick-0"].restarts == 0
        finally:
            await fleet.aclose(drain=False)

    run(story())
