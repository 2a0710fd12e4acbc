"""The autoscaler of a cluster as a process: log in, answer probes, size every ModelService with bounds until told to end.

`penstock autoscaler` calls `serve_autoscaler`; the object graph is built here. The simulator, which answers "what if", is handed in: it
knows this package, not the other way round.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from penstock_dataplane.loop import run
from penstock_dataplane.probes import Probes
from penstock_kvindex.calls import connect
from penstock_kvindex.models import ServedModels
from penstock_kvindex.redis import RedisIndex
from penstock_kvindex.scaling import ScalingStore
from penstock_kvindex.windows import Windows
from penstock_process import logs
from penstock_process.announcing import announce
from prometheus_client import generate_latest

from penstock_autoscaler.config import AutoscalerConfig, AutoscalerSecrets
from penstock_autoscaler.figures import Figures
from penstock_autoscaler.health import Health
from penstock_autoscaler.kube_api import KubeApi, login
from penstock_autoscaler.kube_fleet import KubeFleet
from penstock_autoscaler.kube_loops import KubeLoops
from penstock_autoscaler.kube_scope import KubeScope, Scaled
from penstock_autoscaler.loop import ScalingLoop
from penstock_autoscaler.ports import WhatIf
from penstock_autoscaler.scaler import Scaler

log = logging.getLogger(__name__)

MakeWhatIf = Callable[[], WhatIf]
_BEAT_S = 1.0
_REDIS_S = 2.0


def serve_autoscaler(config: AutoscalerConfig, secrets: AutoscalerSecrets, what_if: MakeWhatIf, warm_up: Callable[[], None]) -> int:
    """Run until SIGTERM or SIGINT; gives the exit status. `what_if` makes one a model, `warm_up` what all of them need first.

    Raises ScaleFailed without a way to a cluster.
    """
    logs.configure(config.log_level)
    return run(_serve(config, secrets, what_if, warm_up))


async def _serve(config: AutoscalerConfig, secrets: AutoscalerSecrets, what_if: MakeWhatIf, warm_up: Callable[[], None]) -> int:
    api, redis = KubeApi(await login(config.kubeconfig, os.environ)), connect(secrets.redis_url, _REDIS_S)
    figures, health = Figures(), Health()
    scope = KubeScope(api, config.watch_namespace, time.time)
    served = ServedModels(secrets.redis_url, client=redis)

    def make(one: Scaled) -> ScalingLoop:
        registry = RedisIndex(secrets.redis_url, one.model, client=redis)
        return ScalingLoop(
            one.model,
            signals=Windows(secrets.redis_url, one.model, client=redis),
            actuator=KubeFleet(*one.key, scope, registry, time.time),
            brain=Scaler(config.scaler, what_if() if config.what_if else None),
            store=ScalingStore(secrets.redis_url, one.model, client=redis),
            figures=figures,
            times=config.times,
            wakeable=lambda: served.say_wakeable([one.model]),
        )

    loops = KubeLoops(scope, make, config.look_s)
    health.listed, health.models = lambda: loops.listed, lambda: loops.models
    probes = Probes(health, lambda: generate_latest(figures.registry))
    url = await probes.start(config.host, config.port)
    if config.announce_path:
        announce(Path(config.announce_path), url)
    beat = asyncio.create_task(_beat(health), name="beat")
    try:
        await _until_told(loops, warm_up if config.what_if else None)
    finally:
        beat.cancel()
        await probes.aclose()
        await api.aclose()
        await redis.aclose()
    return 0


async def _until_told(loops: KubeLoops, warm_up: Callable[[], None] | None) -> None:
    """Warm up and size until SIGTERM or SIGINT; then every lease is given back."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    running = asyncio.create_task(_size(loops, warm_up), name="loops")
    ending = asyncio.create_task(told.wait(), name="told to end")
    await asyncio.wait((running, ending), return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    failed = running.done()
    running.cancel()
    await asyncio.wait((running, ending))
    if failed:
        running.result()
    log.info("stopped")


async def _size(loops: KubeLoops, warm_up: Callable[[], None] | None) -> None:
    if warm_up is not None:
        await asyncio.to_thread(warm_up)
    await loops.run()


async def _beat(health: Health) -> None:
    while True:
        await asyncio.sleep(_BEAT_S)
        health.beat_at = time.monotonic()
