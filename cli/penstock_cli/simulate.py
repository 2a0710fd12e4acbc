"""`penstock simulate`: replay a trace, or made-up traffic, against a simulated fleet behind the production scheduler.

`main` adds the command. Virtual time: an hour of traffic takes seconds; the first replay on a machine compiles for a while.
"""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from penstock_router.policy_names import ALLOWED, parse_policy

from penstock_cli.said import WITH_AUTOSCALER, refuse_said

if TYPE_CHECKING:
    from penstock_autoscaler.decision import Decision
    from penstock_simulator.autoscaled import Autoscaled
    from penstock_simulator.report import Summary
    from penstock_simulator.setup import Replay, Setup, WorkerSpec
    from penstock_simulator.workload import Workload

_FILE_WIDTH = 180
MOST_MS = 86_399_999.0
"""Of any time in milliseconds: a day, which is not allowed itself."""


class Arrivals(StrEnum):
    """When the requests of one stored instant arrive."""

    STORED = "stored"
    SPREAD = "spread"


class KnownBookings(StrEnum):
    """What routers know of one another's bookings; as the simulator names it, which is loaded later."""

    NONE = "none"
    HEARD = "heard"
    MIRRORED = "mirrored"
    SHARED = "shared"


class PlotForm(StrEnum):
    """File format of plots."""

    PNG = "png"
    SVG = "svg"


def simulate(
    context: typer.Context,
    trace: Annotated[Path | None, typer.Option(help="Mooncake-style .jsonl or Azure .csv, .zst or not.")] = None,
    generate: Annotated[
        str, typer.Option(help="Made-up traffic: KIND[:name=value,...], e.g. bursts:rate=20,cv=4 (docs/simulator.md).")
    ] = "",
    workers: Annotated[int, typer.Option(min=0, max=1024, help="Workers that prefill and decode.")] = 0,
    prefill: Annotated[int, typer.Option(min=0, max=1024, help="Prefill workers.")] = 0,
    decode: Annotated[int, typer.Option(min=0, max=1024, help="Decode workers.")] = 0,
    mix: Annotated[str, typer.Option(help="Workers of several kinds instead: COUNTxPROFILE[@SPEED][/ROLE],...")] = "",
    policy: Annotated[str, typer.Option(help=f"Placement policy: {ALLOWED}.")] = "target-misses",
    compare: Annotated[str, typer.Option(help="Several policies, with commas, on the same traffic.")] = "",
    slo_ttft_ms: Annotated[float, typer.Option(min=1, max=MOST_MS, help="TTFT target.")] = 2_000.0,
    slo_itl_ms: Annotated[float, typer.Option(min=0.1, max=MOST_MS, help="ITL target.")] = 50.0,
    speedup: Annotated[str, typer.Option(help="Compress the trace's time so many times; several with commas: several loads.")] = "1",
    arrivals: Annotated[
        Arrivals, typer.Option(help="stored: as in the file; spread: evenly within an instant's quantum.")
    ] = Arrivals.STORED,
    requests: Annotated[int, typer.Option(min=0, help="Only the first so many; 0: all.")] = 0,
    profile: Annotated[str, typer.Option(help="Timing of the workers.")] = "polynomial-reference",
    declared_speed: Annotated[
        float,
        typer.Option(
            min=0.01, max=1_000, help="Workers say that they are so many times as fast as they are: a wrong profile for the router."
        ),
    ] = 1.0,
    fitted: Annotated[bool, typer.Option(help="Correct declared profiles by measured passes.")] = True,
    transfer_gb_per_s: Annotated[float, typer.Option(help="Link of each prefill worker; inf: free; 0: the profile's.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Decides ties.")] = 0,
    one_by_one: Annotated[bool, typer.Option("--one-by-one", help="Place requests of one instant in order of arrival.")] = False,
    admission: Annotated[
        bool, typer.Option("--admission", help="The router's line: requests wait, and are shed, as its defaults say.")
    ] = False,
    report_lag_ms: Annotated[float, typer.Option(min=0, max=MOST_MS, help="Age of a load report when the router hears it.")] = 0.0,
    index_lag_ms: Annotated[float, typer.Option(min=0, max=MOST_MS, help="How long a change of a cache takes to reach the router.")] = 0.0,
    routers: Annotated[int, typer.Option(min=1, max=16, help="Replicas of the router.")] = 1,
    bookings: Annotated[
        KnownBookings,
        typer.Option(help="What routers know of one another's: nothing, news, also mirrored guesses, or a shared ledger."),
    ] = KnownBookings.HEARD,
    exchange_ms: Annotated[float, typer.Option(min=0, max=MOST_MS, help="Age of news from another router.")] = 50.0,
    autoscale: Annotated[
        bool,
        typer.Option("--autoscale", help="The autoscaler sizes the fleet, beginning with it as given.", rich_help_panel=WITH_AUTOSCALER),
    ] = False,
    start_s: Annotated[
        float, typer.Option(help="How long a replica takes to start; below 0: the profile's.", rich_help_panel=WITH_AUTOSCALER)
    ] = -1.0,
    least: Annotated[int, typer.Option("--min", min=1, help="Fewest replicas of a role.", rich_help_panel=WITH_AUTOSCALER)] = 1,
    most: Annotated[int, typer.Option("--max", min=1, max=512, help="Most replicas of a role.", rich_help_panel=WITH_AUTOSCALER)] = 16,
    goal: Annotated[float, typer.Option(help="Share of requests that should meet both targets.", rich_help_panel=WITH_AUTOSCALER)] = 0.95,
    plots: Annotated[Path | None, typer.Option(help="Folder for pictures (needs the extra `plots`).")] = None,
    plot_format: Annotated[PlotForm, typer.Option(help="Format of the pictures.")] = PlotForm.PNG,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Replay traffic against a simulated fleet in virtual time."""
    import msgspec
    from penstock_core.slo import Slo
    from penstock_router.admission.claim import LineLimits
    from penstock_simulator.report import summarise
    from penstock_simulator.setup import Bookings, Setup

    if not autoscale:
        refuse_said(context, WITH_AUTOSCALER, "without the autoscaler", "--autoscale")
    workload = workload_of(trace, generate, arrivals, requests)
    loads = [workload.at_speed(one) for one in _speeds(speedup)]
    fleet = _fleet(workers, prefill, decode, mix, profile, transfer_gb_per_s)
    if declared_speed != 1.0:
        fleet = tuple(msgspec.structs.replace(spec, declared=spec.profile.at_speed(declared_speed)) for spec in fleet)
    slo = Slo(slo_ttft_ms / 1e3, slo_itl_ms / 1e3)
    names = [name.strip() for name in (compare or policy).split(",") if name.strip()]
    for name in names:
        parse_policy(name)  # before the first of many replays
    common = Setup(
        workers=fleet,
        slo=slo,
        seed=seed,
        turn_order=not one_by_one,
        together=not one_by_one,
        fitted=fitted,
        admission=LineLimits() if admission else None,
        report_lag_s=report_lag_ms / 1e3,
        index_lag_s=index_lag_ms / 1e3,
        routers=routers,
        bookings=Bookings(bookings.value),
        exchange_s=exchange_ms / 1e3,
    )
    wanted = [(load, msgspec.structs.replace(common, policy=name)) for name in names for load in loads]
    loops: list[Autoscaled] = []
    if autoscale:
        from penstock_cli.simulate_autoscaled import with_autoscaler

        wanted, loops = with_autoscaler(wanted, goal, (least, most), start_s)
    replays = _replay_all(wanted)
    summaries = [summarise(one) for one in replays]
    if plots is not None:
        from penstock_simulator.plots import draw

        for path in draw(replays, plots, plot_format.value, [loop.ticks for loop in loops]):
            sys.stderr.write(f"wrote {path}\n")
    _show(summaries, loops, as_json)


def _show(summaries: "list[Summary]", loops: "list[Autoscaled]", as_json: bool) -> None:
    """A table and what an autoscaler did, or all of it as JSON."""
    import msgspec

    if as_json:
        encoded = msgspec.json.encode({"replays": summaries, **({"decisions": [_decisions(loop) for loop in loops]} if loops else {})})
        sys.stdout.write(msgspec.json.format(encoded, indent=2).decode() + "\n")
        return
    from penstock_simulator.report import table
    from rich.console import Console

    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    console.print(table(summaries, "workers at first" if loops else "workers"))
    for summary, loop in zip(summaries, loops, strict=False):
        from penstock_simulator.dry_run import changes

        from penstock_cli.plan_answers import timeline
        from penstock_cli.simulate_autoscaled import fitted_lines

        console.print(timeline(f"{summary.policy}, {summary.rate:.3g} requests/s: sizes", changes(loop.ticks)))
        for line in fitted_lines(loop.ticks):
            console.print(line)


def _decisions(loop: "Autoscaled") -> "list[Decision]":
    return [tick.decision for tick in loop.ticks]


def _speeds(speedup: str) -> list[float]:
    try:
        return [float(one) for one in speedup.split(",")]
    except ValueError:
        raise ValueError(f"speedup is {speedup!r}; allowed: a number above 0, or several with commas") from None


def workload_of(trace: Path | None, generated: str, arrivals: Arrivals, requests: int) -> "Workload":
    """The traffic that the options mean. Raises ValueError for none, for both kinds, and for a file that is not there."""
    from penstock_simulator.generate import generate, parse_traffic
    from penstock_simulator.traces import read_trace

    if (trace is None) == (not generated):
        raise ValueError("give either --trace FILE or --generate KIND, and not both")
    if trace is not None and not trace.is_file():
        raise ValueError(f"trace is {str(trace)!r}; allowed: a file that exists")
    workload = read_trace(trace) if trace is not None else generate(parse_traffic(generated))
    workload = workload.first(requests) if requests else workload
    if not workload.requests:
        raise ValueError(f"{workload.name} has no requests; allowed: 1 or more")
    return workload.spread() if arrivals is Arrivals.SPREAD else workload


def _fleet(workers: int, prefill: int, decode: int, mix: str, profile: str, transfer_gb_per_s: float) -> tuple["WorkerSpec", ...]:
    import msgspec
    from penstock_core.endpoint import Role
    from penstock_core.profile import profile_named
    from penstock_simulator.setup import mixed_workers, same_workers

    if mix and workers + prefill + decode:
        raise ValueError(f"mix is {mix!r} beside --workers, --prefill or --decode; allowed: one or the other")
    if not mix and not workers + prefill + decode:
        workers = 8
    fleet = mixed_workers(mix) if mix else same_workers(workers, prefill=prefill, decode=decode, profile=profile_named(profile))
    if all(spec.role is Role.PREFILL for spec in fleet):
        raise ValueError("prefill workers need at least one decode worker; allowed: --decode 1 or more")
    if transfer_gb_per_s < 0.0 or transfer_gb_per_s != transfer_gb_per_s:
        raise ValueError(f"transfer-gb-per-s is {transfer_gb_per_s}; allowed: 0 or more, or inf")
    if not transfer_gb_per_s:
        return fleet
    link = transfer_gb_per_s * 1e9
    return tuple(msgspec.structs.replace(spec, profile=msgspec.structs.replace(spec.profile, transfer_bytes_per_s=link)) for spec in fleet)


def _replay_all(wanted: "list[tuple[Workload, Setup]]") -> list["Replay"]:
    """All replays, with their progress on standard error where that is a terminal."""
    from penstock_simulator.cluster import replay
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:

        def watched(workload: "Workload", setup: "Setup") -> Callable[[int, int], None]:
            task, step = progress.add_task(setup.policy, total=workload.requests), max(1, workload.requests // 100)
            return lambda ended, _all: None if ended % step else progress.update(task, completed=ended)

        return [replay(workload, setup, watched(workload, setup)) for workload, setup in wanted]
