"""`penstock explain`: why the last requests went where they went: every candidate, each term of its cost, the winner.

It shows what the router kept of its decisions (`GET /admin/decisions`) and, beside one of them, the profiles that it predicts with by now
(`GET /admin/learned`). The terms mean what docs/policies.md says; it adds up nothing.
"""

from collections.abc import Sequence
from typing import Any

from penstock_core.errors import PenstockError
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from penstock_cli.data_folder import DataFolder
from penstock_cli.router_admin import ask

_NONE = "–"


def local_explain(folder: DataFolder, url: str | None, request_id: str | None, last: int) -> tuple[dict[str, Any], list[Any]]:
    """What the router kept, for scripts, and the same as tables. Raises NoRouter; PenstockError for a request it has not."""
    query: dict[str, str | int] = {"limit": last} if request_id is None else {"limit": last, "request_id": request_id}
    found = ask(folder, url, "/admin/decisions", query)
    decisions = found["decisions"]
    if request_id is not None and not decisions:
        raise PenstockError(f"request_id is {request_id!r}; the router keeps its last decisions only, and this is not among them")
    if request_id is None:
        return found, [overview(decisions)]
    learned = ask(folder, url, "/admin/learned", {})["models"]
    asked = {decision["model"] for decision in decisions}
    found["profiles"] = {one["model"]: one["profiles"] for one in learned if one["model"] in asked}
    return found, [overview(decisions), *map(detail, decisions), *(profiles(each) for each in found["profiles"].values() if each)]


def overview(decisions: Sequence[dict[str, Any]]) -> Table:
    """One row a decision, newest first: tokens of the prompt, predicted hit, the engine's own hit, predicted and measured TTFT."""
    table = Table(
        title=f"{len(decisions)} decision{'' if len(decisions) == 1 else 's, newest first'}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    for heading in ("request", "model", "prefill", "decode", "reason"):
        table.add_column(heading, overflow="fold")
    for heading in ("ago", "prompt", "hit", "engine", "predicted", "TTFT", "tried"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("outcome", overflow="fold")
    for decision in decisions:
        placement = decision.get("placement") or {}
        table.add_row(
            decision["request_id"],
            decision["model"],
            placement.get("prefill") or _NONE,
            placement.get("decode") or _NONE,
            placement.get("reason", _NONE),
            f"{decision['age_s']:.0f} s",
            _count(decision["prompt_tokens"]),
            _count(placement.get("hit_tokens")),
            _count(decision["cached_tokens"]),
            milliseconds(placement.get("ttft_s")),
            milliseconds(decision["ttft_s"]),
            str(decision["tried"]),
            decision["outcome"],
        )
    return table


def detail(decision: dict[str, Any]) -> RenderableType:
    """One decision with its candidates, the cheapest first; a word where the router kept none."""
    turned = decision.get("turned")
    if turned:
        said = f"{decision['outcome']}: {turned['why']}; told to come again in {turned['retry_after_s']} s"
        return Text(f"{decision['request_id']}: {said}", "bold")
    placement = decision.get("placement") or {}
    candidates = sorted(placement.get("candidates") or (), key=lambda one: float(one.get("cost", 0)))
    where = f"prefill {placement.get('prefill') or _NONE}, decode {placement.get('decode') or _NONE}"
    title = Text(f"{decision['request_id']}: {where}", "bold")
    if not candidates:
        return Group(title, Text("The router kept no candidates of this decision (it keeps those of every n-th: `explain_every`)."))
    terms = sorted({name for one in candidates for name in one.get("terms", {})})
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("prefill", "decode"):
        table.add_column(heading, overflow="fold")
    for heading in ("hit", "TTFT", "step", *terms, "cost"):
        table.add_column(heading, justify="right")
    for one in candidates:
        chosen = (one.get("prefill"), one.get("decode") or None) == (placement.get("prefill"), placement.get("decode"))
        table.add_row(
            one.get("prefill") or _NONE,
            one.get("decode") or _NONE,
            _count(one.get("hit_tokens")),
            milliseconds(one.get("ttft_s")),
            milliseconds(one.get("itl_s")),
            *(_number(one.get("terms", {}).get(name)) for name in terms),
            _number(one.get("cost")),
            style="bold green" if chosen else "",
        )
    return Group(title, table)


def profiles(classes: Sequence[dict[str, Any]], router: str = "") -> Table:
    """Which profile a model's predictions come from, per class of endpoints: declared or fitted, by how much they differ, and why."""
    where = f" at router {router}" if router else ""
    table = Table(title=f"Profiles in force by now{where}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("pool", "declared", "of", "in force", "times declared", "why"):
        table.add_column(heading, overflow="fold")
    for one in classes:
        for part in ("prefill", "decode"):
            fit = one[part]
            force = "fitted" if fit["in_force"] else "declared"
            table.add_row(one["pool"], one["profile"], part, force, f"{fit['scale']:.2f}" if fit["in_force"] else _NONE, fit["why"])
        table.add_row(one["pool"], one["profile"], "TTFT", *deviation(one["ttft"]))
        for endpoint, factor in one["apart"].items():
            table.add_row(one["pool"], "", endpoint, "own pace", f"× {factor:.2f}", "plainly apart from its class")
    return table


def deviation(ttft: dict[str, Any]) -> tuple[str, str, str]:
    """How far off predictions of the TTFT are taken to be, and from whose errors: the last three columns of `profiles`."""
    size = f"± {milliseconds(ttft['slip_s'])}, {ttft['sigma']:.1%}"
    of_whom = "this class's" if ttft["own"] else "all of the model's"
    widened = f", made {ttft['widened']:.1f} times as large" if ttft["widened"] > 1.0 else ""
    return size, _NONE, f"from {ttft['errors']:,} of {of_whom} predictions{widened}"


def milliseconds(seconds: float | str | None) -> str:
    """`152 ms`; a dash for nothing, the word for what is no number (`inf`)."""
    if seconds is None or isinstance(seconds, str):
        return seconds or _NONE
    return f"{seconds * 1e3:,.1f} ms" if seconds < 0.01 else f"{seconds * 1e3:,.0f} ms"


def _count(number: int | None) -> str:
    return _NONE if number is None else f"{number:,}"


def _number(value: float | str | None) -> str:
    return _NONE if value is None else value if isinstance(value, str) else f"{value:.4g}"
