"""`penstock plan` without a trace: the autoscaler's next decision from what live routers have measured, without carrying it out.

`plan` calls it. It reads the fleet from the registry, the traffic from the routers' windows, and goes on from what a running autoscaler
remembers where there is one; it takes no lease and writes nothing.
"""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from urllib.parse import urlsplit

import msgspec
from penstock_autoscaler.decision import Decision
from penstock_autoscaler.knowledge import Knowledge, Saved, decode_saved
from penstock_autoscaler.memory import decode
from penstock_autoscaler.observation import Observation, Phase, Pool, Replica, Target
from penstock_autoscaler.ports import Fleet
from penstock_autoscaler.scaler import Scaler
from penstock_autoscaler.settings import ScalerSettings
from penstock_autoscaler.starts import start_of
from penstock_autoscaler.told import Told, decode_told
from penstock_core.endpoint import Role
from penstock_core.errors import PenstockError
from penstock_core.slo import DEFAULT_SLO, Slo
from penstock_core.traffic import Window
from penstock_kvindex.index import Registered
from penstock_kvindex.models import ServedModels
from penstock_kvindex.redis import RedisIndex
from penstock_kvindex.scaling import ScalingStore
from penstock_kvindex.windows import SILENT_S, Windows
from penstock_simulator.what_if import Replayed, warm_up
from rich.console import Console

from penstock_cli.data_folder import DataFolder
from penstock_cli.explain_scaling import in_words, pace
from penstock_cli.plan_answers import GOAL, Answer, now, targets


class NothingLive(PenstockError):
    """There is no running fleet to plan for; the message says what to start or to give."""


Given = tuple[float | None, float | None]
"""TTFT and ITL target in ms; None: the model's own, else the default."""
Limits = tuple[int | None, int | None]
"""Least and most replicas of a pool; None: those of the autoscaler that has decided lately, else 1 and 16."""


def live_plan(folder: DataFolder, redis_url: str, model: str, given: Given, goal: float | None, bounds: Limits) -> Answer:
    """The decision for the model's fleet as it is; `goal` None: its autoscaler's. Raises NothingLive, IndexUnavailable."""
    running = folder.running()
    url = redis_url or (running.redis_url if running is not None else "")
    if not url:
        raise NothingLive("no `penstock up` runs here: give --redis (or PENSTOCK_REDIS_URL), or traffic with --trace or --generate")
    return asyncio.run(_planned(url, model or (running.model if running is not None else ""), given, goal, bounds))


class _Known(msgspec.Struct, frozen=True):
    """What was read of the model at one moment."""

    now_s: float
    workers: tuple[Registered, ...]
    windows: tuple[Window, ...]
    """What its autoscaler has not decided on yet; without one, all that is kept. Oldest first."""
    saved: Saved | None
    """What its autoscaler remembers; None: nothing does, or nothing that can be read."""
    told: Told | None
    """Its newest decision; None: there is none."""
    decides: bool
    """Whether an autoscaler decides for the model at present."""


async def _planned(url: str, model: str, given: Given, goal: float | None, bounds: Limits) -> Answer:
    model, own = await _model(url, model)
    known = await _known(url, model)
    if not known.workers:
        return _asleep(url, model, known)
    replicas = tuple(_replica(one, known) for one in known.workers)
    fleet = Fleet(target=_target(known, targets(given, own), goal), pools=_pools(known, bounds), replicas=replicas)
    brain, windows = _brain(known)
    seen = Knowledge(known.saved).observed(known.now_s, fleet, windows)
    decision = await asyncio.to_thread(_decided, brain, seen)
    speeds = "".join(f"; engines of {pool.name} take {pace(pool.fit)}" for pool in seen.pools if pool.fit is not None)
    return now(model, decision, {pool.name: pool.desired for pool in seen.pools}, f"From {_history(known, brain)}{speeds}.")


async def _known(url: str, model: str) -> _Known:
    index, windows, store = RedisIndex(url, model), Windows(url, model), ScalingStore(url, model)
    try:
        workers = tuple(one for one in (await index.registry()).rows if one.lease_s > 0.0)
        told = next(iter(decode_told(await store.told(1))), None)
        decides, kept = await store.decides(), await store.memory()
        saved = _read(kept) if kept is not None else None
        now_s, found = await windows.since(Knowledge(saved).since_s, ScalerSettings().period_s)
        return _Known(now_s, workers, tuple(found), saved, told, decides)
    finally:
        for one in (index, windows, store):
            await one.aclose()


def _read(kept: bytes) -> Saved | None:
    try:
        saved = decode_saved(kept)
        decode(saved.brain)
    except (msgspec.DecodeError, ValueError):
        return None  # of another version
    return saved


def _brain(known: _Known) -> tuple[Scaler, Sequence[Window]]:
    """The autoscaler's brain as it is at this moment, and the intervals to go on with; none: no router has told of any lately.

    Where nothing is new since the last decision the brain is taken back to before its last interval, which is decided on once more.
    """
    brain = Scaler(known.saved.settings if known.saved is not None else None, Replayed())
    if known.saved is not None:
        brain.restore(known.saved.brain)
    memory = brain.memory
    if known.windows or not memory.windows or known.now_s - memory.windows[-1].until_s >= SILENT_S:
        return brain, known.windows
    last = memory.windows.pop()
    del memory.counts[-1:], memory.fared[-1:], memory.wanted[-1:]
    return brain, (last,)


def _decided(brain: Scaler, seen: Observation) -> Decision:
    """The next decision. What replays need is compiled first: compiling would use up the decision's time, as it never does in a fleet."""
    with Console(stderr=True).status("replaying the latest traffic") if sys.stderr.isatty() else nullcontext():
        warm_up()
        return brain.step(seen)


def _target(known: _Known, slo: Slo, goal: float | None) -> Target:
    """Goal and budget of its autoscaler, unless another goal is given."""
    its = known.told.target if known.told is not None and known.told.target is not None else Target(slo=slo, attainment_ratio=GOAL)
    return msgspec.structs.replace(its, slo=slo, **({} if goal is None else {"attainment_ratio": goal}))


def _asleep(url: str, model: str, known: _Known) -> Answer:
    """Without a worker there is nothing to plan with: what its autoscaler decided. Raises NothingLive where there is none."""
    if known.told is None or not known.decides:
        lately = f"; its autoscaler, which runs no more, said: {in_words(known.told)}" if known.told is not None else ""
        raise NothingLive(f"model {model!r} has no worker in {_shown(url)}{lately}; allowed: a model that is served")
    here = {pool.name: pool.desired for pool in known.told.pools}
    ago_s = known.now_s - known.told.decision.at_s
    return now(model, known.told.decision, here, f"No worker is there: what its autoscaler decided {ago_s:.0f} s ago.")


def _history(known: _Known, brain: Scaler) -> str:
    """What the decision rests on, in words."""
    counts = brain.memory.counts
    if not known.windows and not counts:
        return f"no windows of any router; {_by_whom(known)}"
    arrivals, seconds = sum(one.arrivals for one in counts), sum(one.length_s for one in counts)
    return f"{arrivals} request{'' if arrivals == 1 else 's'} in {seconds:.0f} s; {_by_whom(known)}"


def _by_whom(known: _Known) -> str:
    if known.saved is None:
        return "no autoscaler has decided for it: its next decisions would tell how long fewer have been enough"
    ago_s = known.now_s - known.told.decision.at_s if known.told is not None else known.now_s - known.saved.since_s
    whose = "its autoscaler's" if known.decides else "an autoscaler's that runs no more"
    return f"gone on from {whose} memory, {ago_s:.0f} s after its last decision (penstock explain scaling)"


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


def _pools(known: _Known, bounds: Limits) -> tuple[Pool, ...]:
    """Pools as the workers name them; their profile is the one that the first worker declares."""
    found: dict[str, list[Registered]] = {}
    for one in known.workers:
        found.setdefault(one.record.pool, []).append(one)
    then = {pool.name: pool for pool in known.told.pools} if known.told is not None else {}
    pools = []
    for name, members in found.items():
        desired = sum(not _drains(one) for one in members)
        if known.told is not None and known.decides:
            desired = known.told.decision.desired.get(name, desired)  # starting ones are not in the registry yet
        pools.append(
            Pool(
                name=name,
                role=members[0].record.role,
                desired=desired,
                min_replicas=min(_first(bounds[0], then[name].min_replicas if name in then else 1), desired),
                max_replicas=max(_first(bounds[1], then[name].max_replicas if name in then else 16), desired),
                profile=members[0].record.profile,
                start_s=then[name].start_s if name in then else members[0].record.profile.start_s,
                accelerators=then[name].accelerators if name in then else 1,
                can_switch=False,
            )
        )
    return tuple(pools)


def _first(given: int | None, otherwise: int) -> int:
    return otherwise if given is None else given


def _drains(one: Registered) -> bool:
    return one.load is not None and one.load.draining


def _ready_s(pool: str, known: _Known) -> float:
    """The registry does not tell: since the sizes are as they are, where nothing starts; else since now."""
    told = known.told
    if told is None or any(one.starting for one in told.pools if one.name == pool):
        return known.now_s
    return told.first_s


def _replica(one: Registered, known: _Known) -> Replica:
    """How it started is told only where no autoscaler remembers it: that one saw more of a start than the registry."""
    load, own, ready_s = one.load, one.record.start_up, _ready_s(one.record.pool, known)
    return Replica(
        id=one.record.id,
        pool=one.record.pool,
        role=Role(one.record.role),
        phase=Phase.DRAINING if _drains(one) else Phase.READY,
        asked_s=ready_s,
        ready_s=ready_s,
        running=load.running if load is not None else 0,
        waiting=load.waiting if load is not None else 0,
        prefill_tokens=load.prefill_tokens if load is not None else 0,
        kv_used_tokens=load.kv_used_tokens if load is not None else 0,
        kv_tokens=one.record.kv_total_tokens,
        start=start_of(one.record.id, own.ready_s - own.began_s, own=own) if own is not None and known.saved is None else None,
    )


def _shown(url: str) -> str:
    """Without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
