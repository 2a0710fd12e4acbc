"""The local fleet as the autoscaler sees and changes it, with real worker processes."""

import asyncio
import time

import pytest
from penstock_autoscaler.decision import Decision, Reason, RoleSwitch
from penstock_autoscaler.observation import Phase, Target
from penstock_autoscaler.ports import ScaleFailed
from penstock_cli.fleet_actuator import FleetActuator, effective_profile
from penstock_cli.scaled_pools import Bounds
from penstock_core.endpoint import Role
from penstock_core.slo import Slo
from penstock_dataplane.loop import run
from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.fleet import Fleet
from penstock_worker.process_host import ProcessHost

WAIT_S = 60
POOLS = {
    "prefill": WorkerConfig(model="m", role=Role.PREFILL, pool="prefill", speed=20.0),
    "decode": WorkerConfig(model="m", role=Role.DECODE, pool="decode", speed=20.0),
}
BOUNDS = {"decode": Bounds(0, 3)}
TARGET = Target(slo=Slo())
NOW_S = 5_000_000.0


def decided(desired, **fields):
    return Decision(at_s=NOW_S, desired=desired, reason=Reason.UP, message="", **fields)


def test_a_decision_is_made_so_within_the_bounds(tmp_path):
    """Sizes and roles change; a pool without bounds stays as it is; a size outside of them is refused by name."""

    async def story():
        fleet = Fleet(ProcessHost(tmp_path, WorkerSecrets(fleet_token="t")), POOLS, fleet_token="t")
        actuator = FleetActuator(fleet, POOLS, BOUNDS | {"prefill": Bounds(0, 2)}, TARGET)
        fixed = FleetActuator(fleet, POOLS, BOUNDS, TARGET)
        await fleet.open()
        try:
            fleet.scale("prefill", 1)
            fleet.scale("decode", 1)
            starting = await actuator.look(NOW_S)
            assert starting.target is TARGET
            await fleet.wait_settled(WAIT_S)
            begun_s = time.monotonic()
            seen = await fixed.look(NOW_S)
            pools = {pool.name: pool for pool in seen.pools}
            assert (pools["decode"].min_replicas, pools["decode"].max_replicas, pools["decode"].desired) == (0, 3, 1)
            assert (pools["prefill"].min_replicas, pools["prefill"].max_replicas) == (1, 1)
            for one in seen.replicas:
                assert one.start is not None
                assert one.start.process_s > 0
                assert one.start.schedule_s == one.start.pull_s == 0
                assert one.start.total_s == pytest.approx(one.ready_s - one.asked_s)
            assert pools["decode"].can_switch
            assert [(one.id, one.phase) for one in seen.replicas] == [("prefill-0", Phase.READY), ("decode-0", Phase.READY)]
            assert all(NOW_S - WAIT_S < one.asked_s < one.ready_s <= NOW_S for one in seen.replicas)
            assert all(one.kv_tokens > 0 for one in seen.replicas)
            with pytest.raises(ScaleFailed, match=r"desired of decode is 4; allowed: 0\.\.3"):
                await fixed.carry_out(decided({"decode": 4}))
            await fixed.carry_out(decided({"decode": 2, "prefill": 5}))
            assert fleet.desired == {"prefill": 1, "decode": 2}
            await fleet.wait_settled(WAIT_S)
            pids = {worker.id: worker.pid for worker in fleet.status()}
            switch = RoleSwitch("decode-1", "prefill", Role.PREFILL)
            await actuator.carry_out(decided({"decode": 1, "prefill": 2}, switches=(switch,)))
            async with asyncio.timeout(WAIT_S):
                while not fleet.settled:  # noqa: ASYNC110 -- a tick of the fleet changes it
                    await asyncio.sleep(0.05)
            seen = await actuator.look(NOW_S + time.monotonic() - begun_s)
            assert sorted((one.id, one.pool) for one in seen.replicas) == [
                ("decode-0", "decode"),
                ("decode-1", "prefill"),
                ("prefill-0", "prefill"),
            ]
            assert {worker.id: worker.pid for worker in fleet.status()} == pids
            with pytest.raises(ScaleFailed, match="worker is 'decode-7', unknown"):
                await actuator.carry_out(decided({}, switches=(RoleSwitch("decode-7", "prefill", Role.PREFILL),)))
        finally:
            await fleet.aclose(drain=False)

    run(story())


def test_the_profile_is_that_of_the_engine_as_it_runs():
    """A sim engine at four times the speed computes in a quarter of the time; a real one ignores the setting."""
    plain, quick = WorkerConfig(), WorkerConfig(speed=4.0)
    assert effective_profile(plain) == plain.timing()
    assert effective_profile(quick).prefill_s(8_000) == pytest.approx(plain.timing().prefill_s(8_000) / 4)
    assert effective_profile(WorkerConfig(speed=1_000.0)).decode_s(8, 8_000) == pytest.approx(plain.timing().decode_s(8, 8_000) / 100)
