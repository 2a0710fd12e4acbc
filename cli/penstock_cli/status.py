"""`penstock status`: the router's endpoints as a table: role, load, KV use, lease.

It shows what the router believes, not what the workers say of themselves.
"""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

_NONE = "–"


def endpoints_table(models: Sequence[dict[str, Any]]) -> Table:
    """One row an endpoint of `GET /admin/endpoints`' models."""
    count = sum(len(model["endpoints"]) for model in models)
    table = Table(title=f"{count} live endpoints", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
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
        endpoint["id"],
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
