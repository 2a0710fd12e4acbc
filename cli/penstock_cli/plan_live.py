"""`penstock plan` without a trace: the autoscaler's next decision from what live routers have measured, without carrying it out.

`plan` calls it. It reads the fleet from the registry, the traffic from the routers' windows, and goes on from what a running autoscaler
remembers where there is one; it takes no lease and writes nothing.
"""

import asyncio
from collections.abc import Sequence
from urllib.parse import urlsplit

from penstock_autoscaler.fits import Fits
from penstock_autoscaler.observation import Observation, Phase, Pool, Replica, Target
from penstock_autoscaler.scaler import Scaler
from penstock_autoscaler.starts import Starts, start_of
from penstock_autoscaler.told import Told, decode_told
from penstock_core.endpoint import Role
from penstock_core.errors import PenstockError
from penstock_core.slo import DEFAULT_SLO, Slo
from penstock_core.traffic import Window
from penstock_kvindex.index import Registered
from penstock_kvindex.models import ServedModels
from penstock_kvindex.redis import RedisIndex
from penstock_kvindex.scaling import ScalingStore
from penstock_kvindex.windows import KEPT_S, Windows
from penstock_simulator.what_if import Replayed

from penstock_cli.data_folder import DataFolder
from penstock_cli.explain_scaling import in_words, pace
from penstock_cli.plan_answers import Answer, now, targets


class NothingLive(PenstockError):
    """There is no running fleet to plan for; the message says what to start or to give."""


Given = tuple[float | None, float | None]
"""TTFT and ITL target in ms; None: the model's own, else the default."""
Limits = tuple[int | None, int | None]
"""Least and most replicas of a pool; None: those of the autoscaler that has decided lately, else 1 and 16."""


def live_plan(folder: DataFolder, redis_url: str, model: str, given: Given, goal: float, bounds: Limits) -> Answer:
    """The decision for the model's fleet as it is. Raises NothingLive, IndexUnavailable."""
    running = folder.running()
    url = redis_url or (running.redis_url if running is not None else "")
    if not url:
        raise NothingLive("no `penstock up` runs here: give --redis (or PENSTOCK_REDIS_URL), or traffic with --trace or --generate")
    return asyncio.run(_planned(url, model or (running.model if running is not None else ""), given, goal, bounds))


async def _planned(url: str, model: str, given: Given, goal: float, bounds: Limits) -> Answer:
    model, own = await _model(url, model)
    slo = targets(given, own)
    index, windows, store = RedisIndex(url, model), Windows(url, model), ScalingStore(url, model)
    try:
        workers = [one for one in (await index.registry()).rows if one.lease_s > 0.0]
        told = next(iter(decode_told(await store.told(1))), None)
        if not workers:
            asleep = f"; its autoscaler says: {in_words(told)}" if told is not None else "; allowed: a model that is served"
            raise NothingLive(f"model {model!r} has no worker in {_shown(url)}{asleep}")
        brain = Scaler(what_if=Replayed())
        # Asked anew rather than gone on from a running autoscaler's memory, which has read the latest windows already.
        now_s, traffic = await windows.since(await windows.clock() - KEPT_S)
        replicas = tuple(_replica(one, now_s) for one in workers)
        starts = Starts()
        starts.see(replicas)
        pools = starts.measured(_pools(workers, bounds, told))
        if traffic is not None:
            fits = Fits()
            fits.hear(traffic)
            pools = fits.corrected(pools, now_s)
        seen = Observation(now_s=now_s, target=Target(slo=slo, attainment_ratio=goal), pools=pools, replicas=replicas, traffic=traffic)
        decision = await asyncio.to_thread(brain.step, seen)
    finally:
        for one in (index, windows, store):
            await one.aclose()
    measured = "no windows of any router" if traffic is None else _measured(traffic)
    by_whom = "its own autoscaler's decisions: `penstock explain scaling`" if told is not None else "no autoscaler has decided for it"
    speeds = "".join(f"; engines of {pool.name} take {pace(pool.fit)}" for pool in pools if pool.fit is not None)
    return now(model, decision, {pool.name: pool.desired for pool in pools}, f"From {measured}{speeds}; {by_whom}.")


async def _model(url: str, model: str) -> tuple[str, Slo]:
    """The model named, else the only one that is served, and its targets. Raises NothingLive where several are, or none."""
    models = ServedModels(url)
    try:
        names = await models.names()
        if not model and len(names) != 1:
            raise NothingLive(f"{_shown(url)} knows {len(names)} models ({', '.join(names) or 'none'}); choose one with --model")
        model = model or names[0]
        return model, (await models.targets([model])).get(model, DEFAULT_SLO)
    finally:
        await models.aclose()


def _measured(traffic: Window) -> str:
    return f"{traffic.arrivals} request{'' if traffic.arrivals == 1 else 's'} in {traffic.length_s:.0f} s of windows"


def _pools(workers: Sequence[Registered], bounds: Limits, told: Told | None) -> tuple[Pool, ...]:
    """Pools as the workers name them; their profile is the one that the first worker declares. `told`: what is known of them beside."""
    found: dict[str, list[Registered]] = {}
    for one in workers:
        found.setdefault(one.record.pool, []).append(one)
    then = {pool.name: pool for pool in told.pools} if told is not None else {}
    return tuple(
        Pool(
            name=name,
            role=members[0].record.role,
            desired=len(members),
            min_replicas=min(_first(bounds[0], then[name].min_replicas if name in then else 1), len(members)),
            max_replicas=max(_first(bounds[1], then[name].max_replicas if name in then else 16), len(members)),
            profile=members[0].record.profile,
            start_s=then[name].start_s if name in then else members[0].record.profile.start_s,
            can_switch=False,
        )
        for name, members in found.items()
    )


def _first(given: int | None, otherwise: int) -> int:
    return otherwise if given is None else given


def _replica(one: Registered, now_s: float) -> Replica:
    load = one.load
    draining, own = load is not None and load.draining, one.record.start_up
    return Replica(
        id=one.record.id,
        pool=one.record.pool,
        role=Role(one.record.role),
        phase=Phase.DRAINING if draining else Phase.READY,
        asked_s=now_s,
        ready_s=now_s,
        running=load.running if load is not None else 0,
        waiting=load.waiting if load is not None else 0,
        prefill_tokens=load.prefill_tokens if load is not None else 0,
        kv_used_tokens=load.kv_used_tokens if load is not None else 0,
        kv_tokens=one.record.kv_total_tokens,
        start=start_of(one.record.id, own.ready_s - own.began_s, own=own) if own is not None else None,
    )


def _shown(url: str) -> str:
    """Without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
