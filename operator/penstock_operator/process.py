"""The operator as a process: log in, answer probes, wait for the Lease, then lead until told to end or until the Lease is lost.

`penstock operator` calls `serve_operator`. What leading is made of is `leading`'s.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from pathlib import Path
from uuid import uuid4

from penstock_dataplane.loop import run
from penstock_dataplane.probes import Probes
from penstock_process import logs
from penstock_process.announcing import announce

from penstock_operator.api_server import ApiServer, login
from penstock_operator.config import OperatorConfig, OperatorSecrets
from penstock_operator.health import Health
from penstock_operator.leader import Leader, LeaseTimes
from penstock_operator.leading import Leading
from penstock_operator.metrics import OperatorMetrics

log = logging.getLogger(__name__)

_BEAT_S = 1.0


def serve_operator(config: OperatorConfig, secrets: OperatorSecrets) -> int:
    """Run until SIGTERM or SIGINT (status 0) or until the Lease is lost or leading fails (status 1)."""
    logs.configure(config.log_level)
    return run(_serve(config, secrets))


async def _serve(config: OperatorConfig, secrets: OperatorSecrets) -> int:
    configuration = await login(config.kubeconfig, os.environ)
    server, metrics, health = ApiServer(configuration), OperatorMetrics(), Health()
    await server.open()
    probes = Probes(health, metrics.text)
    url = await probes.start(config.host, config.port)
    if config.announce_path:
        announce(Path(config.announce_path), url)
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    identity = config.identity or f"{socket.gethostname()}_{uuid4().hex[:8]}"
    times = LeaseTimes(config.lease_duration_s, config.renew_deadline_s, config.retry_period_s)
    leader = Leader(server, config.namespace, identity, times, clock=time.monotonic)
    leading = Leading(configuration, server, config, secrets, metrics, health)
    beat = asyncio.create_task(_beat(metrics, health), name="beat")
    try:
        return await _lead(leader, leading, told)
    finally:
        beat.cancel()
        await probes.aclose()
        await server.aclose()


async def _lead(leader: Leader, leading: Leading, told: asyncio.Event) -> int:
    """Acquire, lead, release: the first of signal, lost Lease and failure ends it."""
    ending = asyncio.create_task(told.wait(), name="told to end")
    acquiring = asyncio.create_task(leader.acquire(), name="acquire")
    await asyncio.wait((ending, acquiring), return_when=asyncio.FIRST_COMPLETED)
    if not acquiring.done():
        acquiring.cancel()
        await asyncio.wait((acquiring,))
        return 0
    holding = asyncio.create_task(leader.hold(), name="hold")
    running = asyncio.create_task(leading.run(), name="lead")
    await asyncio.wait((ending, holding, running), return_when=asyncio.FIRST_COMPLETED)
    lost = holding.done()
    for task in (ending, holding, running):
        task.cancel()
    await asyncio.wait((holding, running))  # nothing of ours writes any more when the Lease is given back
    if running.done() and not running.cancelled() and running.exception() is not None:
        log.error("leading failed", exc_info=running.exception())
        lost = True
    await leader.release()
    return 1 if lost else 0


async def _beat(metrics: OperatorMetrics, health: Health) -> None:
    while True:
        began = time.monotonic()
        await asyncio.sleep(_BEAT_S)
        health.beat_at = time.monotonic()
        metrics.loop_lag.set(max(0.0, health.beat_at - began - _BEAT_S))
