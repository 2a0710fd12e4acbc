"""`penstock status`: the router's endpoints as a table: role, load, KV use, lease.

Roles and loads are what the router believes. Leases are read from the registry, where this machine knows its Redis.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from msgspec import to_builtins
from rich.box import SIMPLE_HEAD
from rich.table import Table

from penstock_cli.data_folder import DataFolder
from penstock_cli.router_admin import NoRouter, ask

_NONE = "–"
_REDIS_S = 3.0


def local_status(folder: DataFolder, url: str | None) -> tuple[dict[str, Any], list[Any]]:
    """What the router says, for scripts, and the same as tables and lines. Raises NoRouter."""
    found = ask(folder, url, "/admin/endpoints")
    models, running = found["models"], folder.running()
    missed = add_leases(models, running.redis_url) if running is not None and url is None else ""
    try:
        scaling = add_scaling(models, ask(folder, url, "/admin/scaling", {"limit": 1}))
    except NoRouter:  # an older router, or its Redis is away, which the leases tell
        scaling = ""
    return found, [endpoints_table(models), models_line(models), *filter(None, [scaling, missed])]


def add_leases(models: Sequence[dict[str, Any]], redis_url: str) -> str:
    """Put `lease_s` (seconds left, below 0: run out) into each endpoint; gives a word where Redis could not be asked."""
    from penstock_core.errors import IndexUnavailable

    try:
        asyncio.run(_add_leases(models, os.environ.get("PENSTOCK_REDIS_URL") or redis_url))
    except (IndexUnavailable, ValueError) as error:
        return f"Leases are not shown: {error}"
    return ""


def add_scaling(models: Sequence[dict[str, Any]], answer: dict[str, Any]) -> str:
    """Put `scaling` (the autoscaler's newest decision) into each model that has one; gives a line each."""
    from penstock_cli.explain_scaling import newest_line, told_of

    newest = {model: (now_s, told) for model, now_s, told in told_of(answer) if told}
    lines = []
    for model in models:
        if model["model"] in newest:
            now_s, told = newest[model["model"]]
            model["scaling"] = to_builtins(told[0])
            lines.append(newest_line(model["model"], now_s, told))
    return "\n".join(lines)


async def _add_leases(models: Sequence[dict[str, Any]], redis_url: str) -> None:
    from penstock_kvindex.redis import RedisIndex

    for model in models:
        index = RedisIndex(redis_url, model["model"], timeout_s=_REDIS_S)
        try:
            left_s = {row.record.id: row.lease_s for row in (await index.registry()).rows}
        finally:
            await index.aclose()
        for endpoint in model["endpoints"]:
            endpoint["lease_s"] = left_s.get(endpoint["id"])


def endpoints_table(models: Sequence[dict[str, Any]]) -> Table:
    """One row an endpoint of `GET /admin/endpoints`' models."""
    count = sum(len(model["endpoints"]) for model in models)
    table = Table(title=f"{count} live endpoint{'' if count == 1 else 's'}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("model", "endpoint", "role"):
        table.add_column(heading, overflow="fold")
    for heading in ("run", "wait", "prefill", "KV", "lease"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("url", overflow="fold")
    for model in models:
        for endpoint in model["endpoints"]:
            table.add_row(model["model"], *_row(endpoint))
    return table


def models_line(models: Sequence[dict[str, Any]]) -> str:
    """What the index of each model holds."""
    if not models:
        return "The router knows of no model yet."
    return "\n".join(
        f"{model['model']}: {model['chunks']:,} chunks in the index ({'warm' if model['index_warm'] else 'still loading'}), "
        f"{model['tokens_per_byte']:.3f} tokens a byte"
        for model in models
    )


def _row(endpoint: dict[str, Any]) -> tuple[str, ...]:
    load = endpoint.get("load") or {}
    return (
        endpoint.get("pod") or endpoint["id"],
        endpoint["role"],
        *(str(load.get(name, _NONE)) for name in ("running", "waiting", "prefill_tokens")),
        kv_use(load),
        _lease(endpoint.get("lease_s")),
        "draining" if endpoint["draining"] else "live",
        endpoint["url"],
    )


def kv_use(load: dict[str, Any]) -> str:
    """Percent of the KV capacity in use; a dash where nothing was reported."""
    total = load.get("kv_total_tokens") or 0
    return f"{100 * load.get('kv_used_tokens', 0) / total:.0f} %" if total else _NONE


def _lease(lease_s: float | None) -> str:
    return _NONE if lease_s is None else f"{lease_s:.1f} s"
