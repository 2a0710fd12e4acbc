"""The answers of `penstock plan`, each as values for scripts and as tables: over a trace, a mix of types, splits, now.

`plan` checks the options and calls these; the work is the simulator's. Progress goes to standard error where that is a terminal.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from penstock_autoscaler.decision import Decision
from penstock_autoscaler.mix import Offer
from penstock_autoscaler.observation import Target
from penstock_core.endpoint import Role
from penstock_core.errors import PenstockError
from penstock_core.profile import EngineProfile
from penstock_core.slo import Slo
from penstock_simulator.dry_run import Asked, changes, dry_run
from penstock_simulator.sizing import CheckedMix, best_splits, busiest_rate, cheapest_checked
from penstock_simulator.workload import Workload
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import Progress
from rich.table import Table

GOAL = 0.95
"""Share of requests that should meet both targets, where nobody says."""
_FILE_WIDTH = 180


class Answer(msgspec.Struct, frozen=True):
    """`found` for --json, `shown` for people."""

    found: dict[str, Any]
    shown: list[Any]


def targets(given_ms: tuple[float | None, float | None], otherwise: Slo) -> Slo:
    """(TTFT, ITL) as given, each of them else as it is otherwise. Raises ValueError for what is no target."""
    ttft_ms, itl_ms = given_ms
    return Slo(otherwise.ttft_s if ttft_ms is None else ttft_ms / 1e3, otherwise.itl_s if itl_ms is None else itl_ms / 1e3)


def asked(
    profile: EngineProfile,
    slo: Slo,
    goal: float,
    first: tuple[int, int, int],
    bounds: tuple[int, int],
    start_s: float,
    accelerators: int,
    seed: int,
) -> Asked:
    """`first`: undivided, prefill, decode. Raises ValueError for fleets that cannot serve or are out of bounds."""
    workers, prefill, decode = first
    if bool(prefill) != bool(decode) or (workers and prefill):
        raise ValueError(
            f"workers, prefill and decode are {workers}, {prefill} and {decode}; allowed: --workers alone, or --prefill and --decode"
        )
    sizes = {Role.PREFILL: prefill, Role.DECODE: decode} if prefill else {Role.BOTH: workers or bounds[0]}
    return Asked(
        profile=profile,
        target=Target(slo=slo, attainment_ratio=goal),
        first=sizes,
        least=bounds[0],
        most=bounds[1],
        start_s=profile.start_s if start_s < 0.0 else start_s,
        accelerators=accelerators,
        seed=seed,
    )


def over_time(workload: Workload, what: Asked, plot: Path | None) -> Answer:
    """The autoscaler over the whole workload."""
    if plot is not None:
        from penstock_simulator.plan_plot import draw_plan
        from penstock_simulator.plots import pyplot

        pyplot()  # before minutes of work
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task, step = bar.add_task("replaying", total=workload.requests), max(1, workload.requests // 100)
        done = dry_run(workload, what, lambda ended, _all: None if ended % step else bar.update(task, completed=ended))
    if plot is not None:
        draw_plan(done, what.target.attainment_ratio, plot)
        sys.stderr.write(f"wrote {plot}\n")
    changed = changes(done.ticks)
    begun_with = {role.value: size for role, size in what.first.items() if size}
    steps = sum(before != after for before, after in pairwise([begun_with, *(one.desired for one in changed)]))
    table = timeline(f"{done.summary.workload}: what the autoscaler would do", changed)
    met = done.summary.goodput_ratio
    goal = what.target.attainment_ratio
    said = (
        f"{done.accelerator_hours:.2f} accelerator-hours, {met:.2%} of {done.summary.requests} requests met both targets "
        f"(goal {goal:.1%}{'' if met >= goal else ', missed'}), "
        f"{steps} change{'' if steps == 1 else 's'} of size in {done.summary.span_s / 60.0:.0f} min"
    )
    found = {
        "accelerator_hours": done.accelerator_hours,
        "attainment_ratio": met,
        "changes": steps,
        "decisions": [tick.decision for tick in done.ticks],
        "minutes": done.minutes,
        "summary": done.summary,
    }
    return Answer(msgspec.to_builtins(found), [table, said])


def timeline(title: str, decisions: Sequence[Decision]) -> RenderableType:
    """When which size was asked for, and why."""
    if not decisions:
        return f"{title}: nothing, the traffic is over before the first decision."
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for heading in ("at", "size", "reason", "why"):
        table.add_column(heading, justify="right" if heading == "at" else "left", overflow="fold")
    for decision in decisions:
        table.add_row(f"{decision.at_s:.0f} s", _size(decision.desired), decision.reason.value, decision.message)
    return table


def mixed(workload: Workload, offers: Sequence[Offer], slo: Slo, goal: float, window_s: float) -> Answer:
    """How many of which type."""
    if not window_s > 0.0:
        raise ValueError(f"window-s is {window_s!r}; allowed: more than 0")
    rate = busiest_rate(workload, window_s)
    with _saying() as say:
        best = cheapest_checked(workload, offers, slo, goal, rate, say)
        each = {offer.name: _alone(workload, offer, slo, goal, rate, say) for offer in offers} if len(offers) > 1 else {}
    replays = best.replays + sum(one.replays for one in each.values() if one is not None)
    alone = {name: one.mix.price if one is not None else None for name, one in each.items()}
    # The programme knows no queues: what it takes for the cheapest mix may need more in the replay than one type alone.
    best = min((best, *(one for one in each.values() if one is not None)), key=lambda one: one.mix.price)
    table = Table(title=f"{workload.name}: {rate:.3g} requests/s at its busiest", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("type", "replicas", "price each", "per hour"):
        table.add_column(heading, justify="left" if heading == "type" else "right")
    for offer in offers:
        count = best.mix.replicas.get(offer.name, 0)
        table.add_row(offer.name, str(count), f"{offer.price:g}", f"{count * offer.price:g}")
    table.add_row("in all", str(sum(best.mix.replicas.values())), "", f"{best.mix.price:g}", style="bold")
    many = f"{replays} replay{'' if replays == 1 else 's'}"
    said = f"Simulated: {best.attainment_ratio:.2%} of the requests met both targets (goal {goal:.1%}); {many}."
    beside = [f"{name} alone: {price:g} an hour" if price is not None else f"{name} alone: not enough" for name, price in alone.items()]
    found = {"rate": rate, **msgspec.to_builtins(best), "alone": alone}
    return Answer(found, [table, said, *beside])


def _alone(workload: Workload, offer: Offer, slo: Slo, goal: float, rate: float, say: Callable[[str], None]) -> CheckedMix | None:
    """With one type only; None where that does not do."""
    try:
        return cheapest_checked(workload, [offer], slo, goal, rate, lambda text: say(f"{offer.name} alone: {text}"))
    except PenstockError:
        return None


def split(workload: Workload, profile: EngineProfile, slo: Slo, goal: float, most: int) -> Answer:
    """The best P:D of each size."""
    with _saying() as say:
        found = best_splits(workload, profile, slo, goal, most, say)
    table = Table(title=f"{workload.name}: best splits", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("replicas", "split", "met both targets", f"goal {goal:.1%}"):
        table.add_column(heading, justify="right")
    for one in found:
        reached = "reached" if one.attainment_ratio >= goal else ""
        table.add_row(str(one.size), f"{one.prefill}P{one.decode}D", f"{one.attainment_ratio:.2%}", reached)
    return Answer({"splits": msgspec.to_builtins(found)}, [table])


def now(model: str, decision: Decision, here: dict[str, int], seen: str) -> Answer:
    """One decision from live windows."""
    title = f"{model}: what the autoscaler would do now"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, min_width=len(title))
    for heading in ("pool", "is", "would be"):
        table.add_column(heading, justify="left" if heading == "pool" else "right")
    for pool, size in decision.desired.items():
        table.add_row(pool, str(here.get(pool, 0)), str(size), style="" if size == here.get(pool) else "bold")
    said = f"{decision.reason.value}: {decision.message}"
    return Answer({"model": model, "decision": msgspec.to_builtins(decision), "here": here, "seen": seen}, [table, said, seen])


def show(answer: Answer, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(answer.found), indent=2).decode() + "\n")
        return
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    for one in answer.shown:
        console.print(one)


def _size(desired: dict[str, int]) -> str:
    """`5`, `3P2D` for pools named by their roles, `a=3 b=2` for others."""
    if desired.keys() == {Role.BOTH.value}:
        return str(desired[Role.BOTH.value])
    if desired.keys() == {Role.PREFILL.value, Role.DECODE.value}:
        return f"{desired[Role.PREFILL.value]}P{desired[Role.DECODE.value]}D"
    return " ".join(f"{pool}={size}" for pool, size in desired.items())


@contextmanager
def _saying() -> Iterator[Callable[[str], None]]:
    """What is being done, on standard error: a line that changes on a terminal, a line each elsewhere."""
    if not sys.stderr.isatty():
        yield _line
        return
    with Console(stderr=True).status("preparing") as status:
        yield status.update


def _line(text: str) -> None:
    sys.stderr.write(text + "\n")
