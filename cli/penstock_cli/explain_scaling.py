"""`penstock explain scaling`: what the autoscaler decided lately, from which numbers, in its own words; and a line of it for `status`.

It shows what the autoscaler kept in Redis, on this machine or in a cluster; whoever calls it knows the Redis and the model.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import msgspec
from penstock_autoscaler.told import Told, decode_told
from penstock_core.errors import PenstockError
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from penstock_cli.data_folder import DataFolder
from penstock_cli.router_admin import NoRouter

_REDIS_S = 3.0
_TEN_MILLION = 1e7


def local_scaling(folder: DataFolder, last: int) -> tuple[dict[str, Any], list[Any]]:
    """Of the `penstock up` that runs here. Raises NoRouter, IndexUnavailable, PenstockError where it has no autoscaler."""
    running = folder.running()
    if running is None:
        raise NoRouter(f"no `penstock up` runs with the data folder {str(folder.path)!r}; start one with --autoscale")
    return explained(os.environ.get("PENSTOCK_REDIS_URL") or running.redis_url, (running.model,), last)


def read_told(redis_url: str, models: Sequence[str], last: int) -> dict[str, tuple[float, list[Told]]]:
    """(Redis' time, decisions with the newest first) by model. Raises IndexUnavailable."""
    return asyncio.run(_read(redis_url, models, last))


async def _read(redis_url: str, models: Sequence[str], last: int) -> dict[str, tuple[float, list[Told]]]:
    from penstock_kvindex.scaling import ScalingStore
    from penstock_kvindex.windows import Windows

    found = {}
    for model in models:
        store, windows = ScalingStore(redis_url, model, timeout_s=_REDIS_S), Windows(redis_url, model, timeout_s=_REDIS_S)
        try:
            found[model] = (await windows.clock(), decode_told(await store.told(last)))
        finally:
            await store.aclose()
            await windows.aclose()
    return found


def explained(redis_url: str, models: Sequence[str], last: int) -> tuple[dict[str, Any], list[RenderableType]]:
    """The same for scripts, and as tables. Raises IndexUnavailable, PenstockError where no autoscaler has decided anything."""
    found = read_told(redis_url, models, last)
    if not any(told for _, told in found.values()):
        raise PenstockError(f"no autoscaler has decided anything about {', '.join(models) or 'any model'} in the last days (--autoscale)")
    for_scripts = {
        "models": [
            {"model": model, "now_s": now_s, "decisions": [msgspec.to_builtins(one) for one in told]}
            for model, (now_s, told) in found.items()
        ]
    }
    return for_scripts, [shown(model, now_s, told) for model, (now_s, told) in found.items() if told]


def shown(model: str, now_s: float, told: Sequence[Told]) -> RenderableType:
    """One row a decision or run of equal ones, newest first, and below it the numbers behind the newest."""
    table = Table(title=f"{model}: {len(told)} decisions, newest first", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("ago", "times"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("replicas", no_wrap=True)
    table.add_column("reason", no_wrap=True)
    table.add_column("why", overflow="fold")
    for one in told:
        why = one.decision.message + (f" Not carried out: {one.trouble}" if one.trouble else "")
        style = "yellow" if one.trouble or not one.decision.valid else ""
        table.add_row(f"{now_s - one.decision.at_s:.0f} s", str(one.times), sizes(one), one.decision.reason.value, why, style=style)
    return Group(table, _numbers(told[0]))


def sizes(one: Told) -> str:
    """`both 1 → 3` for each pool; one number where it stays."""
    wanted = one.decision.desired
    parts = []
    for pool in one.pools:
        after = wanted.get(pool.name, pool.desired)
        parts.append(f"{pool.name} {pool.desired}" + (f" → {after}" if after != pool.desired else ""))
    return ", ".join(parts)


def _numbers(one: Told) -> RenderableType:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("pool", "role"):
        table.add_column(heading, overflow="fold")
    for heading in ("ready", "starting", "wanted", "least", "most", "start-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for pool in one.pools:
        wanted = one.decision.desired.get(pool.name, pool.desired)
        counts = (pool.ready, pool.starting, wanted, pool.min_replicas, pool.max_replicas)
        table.add_row(pool.name, pool.role, *map(str, counts), f"{pool.start_s:.1f} s")
    facts = ", ".join(f"{name} {_figure(value)}" for name, value in sorted(one.decision.facts.items()))
    return Group(table, Text(f"Numbers of the newest: {facts}; decided in {one.seconds * 1e3:.0f} ms.\n" if facts else ""))


def _figure(value: float) -> str:
    whole = float(value).is_integer() and abs(value) < _TEN_MILLION
    return f"{value:.0f}" if whole else f"{value:.4g}"


def newest_line(model: str, now_s: float, told: Sequence[Told]) -> str:
    """What `status` says of the autoscaler."""
    one = told[0]
    trouble = f" Not carried out: {one.trouble}" if one.trouble else ""
    when = f"{model}: autoscaler {now_s - one.decision.at_s:.0f} s ago"
    return f"{when}: {sizes(one)} ({one.decision.reason.value}). {one.decision.message}{trouble}"
