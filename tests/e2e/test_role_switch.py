"""Workers change their roles under load: no stream is cut, no request fails, and both pools go on."""

from penstock_core.endpoint import Role
from penstock_dataplane.loop import run
from penstock_worker.fleet_plan import Phase

from tests.e2e.test_redis_away import Load, check


def test_roles_change_under_load_and_no_stream_is_cut(start_stack):
    """A prefill worker becomes a decode worker and another one the other way round, while clients ask without pause."""

    async def story():
        async with start_stack(prefill=2, decode=2, worker={"speed": 10.0}) as stack:
            load = Load(stack, 8)
            await load.more(30)
            before = {worker.id: worker for worker in stack.fleet.status()}
            for worker, pool in (("prefill-1", "decode"), ("decode-0", "prefill")):
                stack.fleet.switch(worker, pool)
                now = {}

                def switched(worker=worker, pool=pool, now=now):
                    now.update({one.id: one for one in stack.fleet.status()})
                    return now[worker].phase is Phase.READY and now[worker].state.role is Role(pool)

                # the pools' desired counts follow at once, as the autoscaler's actuator does it
                stack.fleet.scale(pool, stack.fleet.desired[pool] + 1)
                other = "prefill" if pool == "decode" else "decode"
                stack.fleet.scale(other, stack.fleet.desired[other] - 1)
                await stack.until(switched, f"{worker} serves as {pool}")
                await stack.until_async(lambda: stack.sees(4), "the router sees all four")
                await load.more(30)
            assert {worker: now[worker].pid for worker in now} == {worker: before[worker].pid for worker in before}
            placed = set()
            while not {("prefill", "decode-0"), ("decode", "prefill-1")} <= placed:
                await load.more(10)
                placed |= {pair for _, reply in load.replies[-10:] for pair in reply.placement.items()}
            await load.end()
            await stack.until_async(stack.idle, "nothing is left")
            return load.replies

    check(run(story()))
