"""The autoscaler of a `penstock up`: the loop with a local fleet under it and the simulator to ask, as a task beside it.

`up` starts it once everything is ready and ends it first. Every change is a line on the console with its reason.
"""

import asyncio

from penstock_autoscaler.figures import Figures
from penstock_autoscaler.health import Health
from penstock_autoscaler.loop import ScalingLoop
from penstock_autoscaler.scaler import Scaler
from penstock_autoscaler.told import Told
from penstock_dataplane.probes import Probes
from penstock_kvindex.models import ServedModels
from penstock_kvindex.scaling import ScalingStore
from penstock_kvindex.windows import Windows
from penstock_simulator.what_if import Replayed, warm_up
from penstock_worker.fleet import Fleet
from prometheus_client import generate_latest
from rich.console import Console
from rich.markup import escape

from penstock_cli.explain_scaling import in_words, sizes
from penstock_cli.fleet_actuator import FleetActuator
from penstock_cli.up_plan import UpPlan

_END_S = 5.0


class LocalScaling:
    """Runs from its making until `aclose`."""

    def __init__(self, plan: UpPlan, fleet: Fleet, redis_url: str, console: Console) -> None:
        self._console = console
        self._figures = Figures()
        health = Health(clock=lambda: 0.0)  # who answers turns
        health.listed, health.models = lambda: True, lambda: 1
        self._probes = Probes(health, lambda: generate_latest(self._figures.registry))
        self._windows = Windows(redis_url, plan.name, silent_s=max(3 * plan.scaling.window_s, 2.0))
        self._store = ScalingStore(redis_url, plan.name)
        self._models = ServedModels(redis_url)
        loop = ScalingLoop(
            plan.name,
            signals=self._windows,
            actuator=FleetActuator(fleet, plan.pools(), plan.bounds, plan.target),
            brain=Scaler(plan.scaling.scaler, Replayed(plan.policy)),
            store=self._store,
            figures=self._figures,
            times=plan.scaling.times,
            on_decision=self._on_decision,
            wakeable=lambda: self._models.say_wakeable((plan.name,)),
        )
        self._valid = True
        self._task = asyncio.get_running_loop().create_task(self._run(loop), name="autoscaler")

    async def listen(self, port: int) -> str:
        """Answer `/metrics`, on this machine only; gives its URL. Raises OSError for a port that is taken."""
        return await self._probes.start("127.0.0.1", port) + "/metrics"

    async def _run(self, loop: ScalingLoop) -> None:
        """Compile what replays need first: up to a minute where nothing is shipped compiled, and no decision's time."""
        await asyncio.to_thread(warm_up)
        await loop.run()

    def _on_decision(self, told: Told, again: bool) -> None:
        """A line for each change, for trouble, and when data come to lack or are there again."""
        decision = told.decision
        here = {pool.name: pool.desired for pool in told.pools}
        changes = decision.desired != here or decision.switches or decision.late
        valid_again, self._valid = decision.valid != self._valid, decision.valid
        if told.trouble and not again:
            self._console.print(f"[yellow]autoscaler: {escape(sizes(told))}: not carried out: {escape(told.trouble)}[/]")
        elif (changes and decision.valid) or valid_again:
            colour = "cyan" if decision.valid else "yellow"
            self._console.print(f"[{colour}]autoscaler, {decision.reason.value}: {escape(in_words(told))}[/]")

    async def aclose(self) -> None:
        """End it and give its connections back; a what-if under way ends by itself, within its budget."""
        self._task.cancel()
        await asyncio.wait((self._task,), timeout=_END_S)
        for one in (self._probes, self._windows, self._store, self._models):
            await one.aclose()
