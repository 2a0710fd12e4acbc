"""Engines that are killed under load: clients see no error in place of a first byte, and what the old cache held is not believed."""

import os
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from penstock_dataplane.loop import run
from talk import Load, close_ratio, hit_ratio, traffic

BACK_S = 900.0
KEPT = {"decisions_kept": 1000}


def _engine_core(worker_pid: int) -> int:
    """Process of the engine core, behind the HTTP server."""
    for child in psutil.Process(worker_pid).children(recursive=True):
        if "EngineCore" in f"{child.name()} {' '.join(child.cmdline())}":
            return int(child.pid)
    raise AssertionError("the worker has no engine core")


def _engine(worker_pid: int) -> int:
    """Process of vLLM's HTTP server: the worker's own child."""
    (child,) = psutil.Process(worker_pid).children()
    return int(child.pid)


async def _killed_and_back(stack: Any, load: Load, pool: str, process_of: Callable[[int], int]) -> None:
    """Kill under load, wait for the worker's next epoch, and see that nothing of the old one is left."""
    worker = next(one for one in stack.fleet.status() if one.pool == pool)
    old = (await stack.held())[worker.id]
    assert len(old.keys), "there is a cache to lose"
    os.kill(process_of(worker.pid), signal.SIGKILL)

    def back() -> bool:
        return any(one.id == worker.id and one.pid not in (None, worker.pid) and one.url for one in stack.fleet.status())

    await stack.until(back, "the worker is back", within_s=BACK_S)
    await stack.until_async(lambda: stack.sees(2), "the router sees it again")
    new = (await stack.held())[worker.id]
    assert new.epoch != old.epoch
    await load.until(5)


@pytest.mark.long
def test_a_killed_prefill_engine_costs_no_client_its_answer(start: Callable[..., Any]) -> None:
    """First its server, then its core: answers come from the decode engine meanwhile, and later from both again."""

    async def story() -> None:
        async with start(adopted=("decode",), own=("prefill",), router=KEPT) as stack:
            load = Load(stack, 6)
            await load.until(12)
            for process_of in (_engine, _engine_core):
                await _killed_and_back(stack, load, "prefill", process_of)
            await load.stop()
            assert load.refused == []
            decisions = await traffic(stack, 7, 40)
            assert any(one["placement"]["prefill"] == "prefill-0" for one in decisions)
            assert close_ratio(decisions) >= 0.98

    run(story())


@pytest.mark.long
def test_a_killed_undivided_engine_is_back_and_its_hits_are_foretold_as_before(start: Callable[..., Any]) -> None:
    """Its core is killed: streams that had begun may end early, no other request may; none of its old KV is foretold."""

    async def story() -> None:
        async with start(adopted=("both",), own=("second",), router=KEPT) as stack:
            load = Load(stack, 8)
            await load.until(40)
            await _killed_and_back(stack, load, "second", _engine_core)
            await load.stop()
            assert load.refused == []
            assert load.cut <= 3, "a stream of each client at most"
            decisions = await traffic(stack, 8, 80)
            assert close_ratio(decisions) >= 0.98
            assert hit_ratio(decisions) >= 0.5

    run(story())
