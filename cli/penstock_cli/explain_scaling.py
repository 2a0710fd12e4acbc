"""`penstock explain scaling`: what the autoscaler decided lately, from which numbers, in its own words; and a line of it for `status`.

It shows what the autoscaler kept in Redis, as a router of this machine or of a cluster reads it (`GET /admin/scaling`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from penstock_autoscaler.starts import PHASES
from penstock_autoscaler.told import PoolThen, Told, decode_told
from penstock_core.errors import PenstockError
from penstock_core.profile_fit import PoolFit
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from penstock_cli.data_folder import DataFolder
from penstock_cli.router_admin import ask

if TYPE_CHECKING:
    from penstock_cli.cluster import Cluster

MOST = 200
"""Decisions that are kept."""
_TEN_MILLION = 1e7
_SHORTEST_S = 0.05
"""Of a phase that is shown."""


PATH = "/admin/scaling"
"""What routers are asked for; they read it from Redis, which need not be reachable from here."""


def local_scaling(folder: DataFolder, url: str | None, last: int) -> tuple[dict[str, Any], list[Any]]:
    """Of the `penstock up` that runs here, or of the router at `url`. Raises NoRouter, PenstockError where there is no autoscaler."""
    return explained(ask(folder, url, PATH, {"limit": min(last, MOST)}))


def cluster_scaling(cluster: "Cluster", last: int) -> tuple[dict[str, Any], list[Any]]:
    """Of a cluster: all its routers read the same Redis, so the first that answers will do. Raises ClusterError, PenstockError."""
    from penstock_cli.cluster_routers import ask_all, routers

    answers = ask_all(cluster, routers(cluster), PATH, {"limit": min(last, MOST)})
    return explained(next(iter(answers.said.values())))


def explained(found: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """A router's answer for scripts, and as tables. Raises PenstockError where no autoscaler has decided anything."""
    rows = told_of(found)
    if not any(told for _, _, told in rows):
        models = ", ".join(model for model, _, _ in rows) or "any model"
        raise PenstockError(
            f"no autoscaler has decided anything about {models} yet, or in the last days; `penstock up --autoscale` has one"
        )
    return found, [shown(model, now_s, told) for model, now_s, told in rows if told]


def told_of(found: dict[str, Any]) -> list[tuple[str, float, list[Told]]]:
    """(model, Redis' time, decisions with the newest first) of a router's answer."""
    return [
        (row["model"], row["now_s"], decode_told(msgspec.json.encode(one) for one in row["decisions"])) for row in found.get("models", ())
    ]


def shown(model: str, now_s: float, told: Sequence[Told]) -> RenderableType:
    """One row a decision or run of equal ones, newest first, and below it the numbers behind the newest."""
    table = Table(
        title=f"{model}: {len(told)} decision{'' if len(told) == 1 else 's, newest first'}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
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


def in_words(one: Told) -> str:
    """The decision's sentence, with the sizes in front where it does not say them itself."""
    told, message = sizes(one), one.decision.message
    return message if told in message else f"{told}: {message}"


def _numbers(one: Told) -> RenderableType:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("pool", "role"):
        table.add_column(heading, overflow="fold")
    for heading in ("ready", "starting", "wanted", "least", "most"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("start-up", overflow="fold")
    table.add_column("engines take", overflow="fold")
    for pool in one.pools:
        wanted = one.decision.desired.get(pool.name, pool.desired)
        counts = (pool.ready, pool.starting, wanted, pool.min_replicas, pool.max_replicas)
        table.add_row(pool.name, pool.role, *map(str, counts), _start_up(pool), pace(pool.fit))
    facts = ", ".join(f"{name} {_figure(value)}" for name, value in sorted(one.decision.facts.items()))
    return Group(table, Text(f"Numbers of the newest: {facts}; decided in {one.seconds * 1e3:.0f} ms.\n" if facts else ""))


def _start_up(pool: PoolThen) -> str:
    """How long a start takes, and in which phases."""
    if pool.start is None:
        return f"{pool.start_s:.1f} s (declared)"
    phases = ((name.removesuffix("_s"), getattr(pool.start, name)) for name in PHASES)
    return f"{pool.start_s:.1f} s ({', '.join(f'{name} {took:.1f}' for name, took in phases if took >= _SHORTEST_S)})"


def pace(fit: PoolFit | None) -> str:
    """Which profile a pool was sized by, in words."""
    if fit is None:
        return "what is declared"
    ratios = f"prefill ×{fit.prefill_ratio:.2f}, decode ×{fit.decode_ratio:.2f}"
    return f"{ratios} of what {fit.declared} says ({fit.samples} passes measured)"


def _figure(value: float) -> str:
    whole = float(value).is_integer() and abs(value) < _TEN_MILLION
    return f"{value:.0f}" if whole else f"{value:.4g}"


def newest_line(model: str, now_s: float, told: Sequence[Told]) -> str:
    """What `status` says of the autoscaler."""
    one = told[0]
    trouble = f" Not carried out: {one.trouble}" if one.trouble else ""
    return f"{model}: autoscaler {now_s - one.decision.at_s:.0f} s ago, {one.decision.reason.value}: {in_words(one)}{trouble}"
