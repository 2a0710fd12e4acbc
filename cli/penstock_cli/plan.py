"""`penstock plan`: what the autoscaler would do, with nothing changed: over a trace, or now, from what live routers measured.

`main` adds the command. With `--gpu-types` it says instead how many replicas of which accelerator type a trace needs, and with `--splits`
how each size is best divided into prefill and decode. It decides nothing itself: the autoscaler, its `mix` and the simulator do.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock_cli.looking import Data
from penstock_cli.said import refuse_said, said_in
from penstock_cli.simulate import MOST_MS, Arrivals, workload_of

if TYPE_CHECKING:
    from penstock_autoscaler.mix import Offer
    from penstock_core.profile import EngineProfile

_TRACE = "Over a trace"
_LIVE = "From live windows"


def plan(
    context: typer.Context,
    trace: Annotated[Path | None, typer.Option(help="Mooncake-style .jsonl or Azure .csv, .zst or not.", rich_help_panel=_TRACE)] = None,
    generate: Annotated[
        str,
        typer.Option(help="Made-up traffic instead: KIND[:name=value,...], e.g. ramp:rate=20 (docs/simulator.md).", rich_help_panel=_TRACE),
    ] = "",
    speedup: Annotated[float, typer.Option(help="Compress the trace's time so many times.", rich_help_panel=_TRACE)] = 1.0,
    arrivals: Annotated[
        Arrivals, typer.Option(help="stored: as in the file; spread: evenly within an instant's quantum.", rich_help_panel=_TRACE)
    ] = Arrivals.SPREAD,
    requests: Annotated[int, typer.Option(min=0, help="Only the first so many; 0: all.", rich_help_panel=_TRACE)] = 0,
    workers: Annotated[
        int, typer.Option(min=0, max=512, help="Undivided replicas to begin with; none of any kind: 1.", rich_help_panel=_TRACE)
    ] = 0,
    prefill: Annotated[int, typer.Option(min=0, max=512, help="Prefill replicas to begin with.", rich_help_panel=_TRACE)] = 0,
    decode: Annotated[int, typer.Option(min=0, max=512, help="Decode replicas to begin with.", rich_help_panel=_TRACE)] = 0,
    profile: Annotated[str, typer.Option(help="Timing of a replica.", rich_help_panel=_TRACE)] = "polynomial-reference",
    accelerators: Annotated[int, typer.Option(min=1, help="Of one replica.", rich_help_panel=_TRACE)] = 1,
    start_s: Annotated[float, typer.Option(help="Start-up time of a replica; below 0: the profile's.", rich_help_panel=_TRACE)] = -1.0,
    seed: Annotated[int, typer.Option(min=0, help="Decides ties.", rich_help_panel=_TRACE)] = 0,
    gpu_types: Annotated[
        str,
        typer.Option(
            help="NAME=PRICE[*MOST],...: the cheapest mix of these. A NAME is a profile, PROFILE@SPEED for one so many times as fast; "
            "PRICE is of one replica for an hour; MOST replicas can be had.",
            rich_help_panel=_TRACE,
        ),
    ] = "",
    window_s: Annotated[float, typer.Option(help="--gpu-types is for the busiest so many seconds.", rich_help_panel=_TRACE)] = 300.0,
    splits: Annotated[bool, typer.Option("--splits", help="The best prefill : decode split of each size.", rich_help_panel=_TRACE)] = False,
    plot: Annotated[Path | None, typer.Option(help="Picture to write: .png or .svg (extra `plots`).", rich_help_panel=_TRACE)] = None,
    model: Annotated[str, typer.Option(help="Served model. [default: what `penstock up` serves]", rich_help_panel=_LIVE)] = "",
    redis: Annotated[
        str, typer.Option(envvar="PENSTOCK_REDIS_URL", help="Redis of the routers. [default: that of `penstock up`]", rich_help_panel=_LIVE)
    ] = "",
    data: Data = None,
    slo_ttft_ms: Annotated[
        float | None, typer.Option(min=1, max=MOST_MS, help="TTFT target. [default: the live model's, else 2000]")
    ] = None,
    slo_itl_ms: Annotated[float | None, typer.Option(min=0.1, max=MOST_MS, help="ITL target. [default: the live model's, else 50]")] = None,
    goal: Annotated[
        float | None, typer.Option(help="Share of requests that should meet both. [default: the live autoscaler's, else 0.95]")
    ] = None,
    least: Annotated[
        int | None, typer.Option("--min", min=1, help="Fewest replicas of a role. [default: as the live autoscaler may, else 1]")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", min=1, max=512, help="Most replicas of a role. [default: as the live autoscaler may, else 16]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Say what the autoscaler would do, and why; nothing is changed.

    With --trace or --generate over that traffic, in virtual time; else now, from what the routers of a running fleet have measured.
    """
    from penstock_core.slo import DEFAULT_SLO

    from penstock_cli import plan_answers as answers

    if goal is not None and not 0.0 < goal < 1.0:
        raise ValueError(f"goal is {goal!r}; allowed: more than 0 and less than 1")
    bounds = (1 if least is None else least, 16 if most is None else most)
    if bounds[0] > bounds[1]:
        raise ValueError(f"min is {bounds[0]}; allowed: 1..{bounds[1]}, the value of --max")
    asked_for = [name for name, given in (("--gpu-types", gpu_types), ("--splits", splits), ("--plot", plot is not None)) if given]
    if len(asked_for) > 1:
        raise ValueError(f"{' and '.join(asked_for)} are given; allowed: one of them, each is an answer of its own")
    if trace is None and not generate:
        from penstock_cli.data_folder import chosen
        from penstock_cli.plan_live import live_plan

        refuse_said(context, _TRACE, "without traffic", "--trace or --generate")
        answers.show(live_plan(chosen(data), redis, model, (slo_ttft_ms, slo_itl_ms), goal, (least, most)), as_json)
        return
    if not gpu_types and "--window-s" in said_in(context, _TRACE):
        raise ValueError("--window-s: of no use without types to choose from; allowed: with --gpu-types")
    goal = answers.GOAL if goal is None else goal
    slo = answers.targets((slo_ttft_ms, slo_itl_ms), DEFAULT_SLO)
    workload = workload_of(trace, generate, arrivals, requests).at_speed(speedup)
    engine = _engine(profile)
    if gpu_types:
        offers = parse_offers(gpu_types)
        answer = answers.mixed(workload, offers, slo, goal, window_s)
    elif splits:
        answer = answers.split(workload, engine, slo, goal, bounds[1])
    else:
        asked = answers.asked(engine, slo, goal, (workers, prefill, decode), bounds, start_s, accelerators, seed)
        answer = answers.over_time(workload, asked, plot)
    answers.show(answer, as_json)


def parse_offers(text: str) -> "list[Offer]":
    """`NAME=PRICE[*MOST],...`. Raises ValueError naming the part and what is allowed."""
    from penstock_autoscaler.mix import Offer

    offers = []
    for part in text.split(","):
        name, equals, rest = part.strip().partition("=")
        price, _, most = rest.partition("*")
        if not equals:
            raise ValueError(f"gpu-types is {part.strip()!r}; allowed: NAME=PRICE[*MOST], e.g. polynomial-reference@0.5=1.2*8")
        try:
            engine = _engine(name)
        except ValueError as error:
            raise ValueError(f"gpu-types is {part.strip()!r}: {error}") from None
        try:
            offer = Offer(name=name, profile=engine, price=float(price), most=int(most) if most else 1_024)
        except ValueError:
            raise ValueError(f"gpu-types is {part.strip()!r}; allowed: NAME=PRICE[*MOST], e.g. polynomial-reference@0.5=1.2*8") from None
        if not 0.0 < offer.price < 1e9 or offer.most < 1:
            raise ValueError(f"gpu-types is {part.strip()!r}; allowed: a price above 0, and 1 or more to be had")
        offers.append(offer)
    if len({offer.name for offer in offers}) < len(offers):
        raise ValueError(f"gpu-types is {text!r}; allowed: each name once")
    return offers


def _engine(name: str) -> "EngineProfile":
    from penstock_core.profile import profile_named

    plain, at, speed = name.partition("@")
    engine = profile_named(plain)
    if not at:
        return engine
    try:
        factor = float(speed)
    except ValueError:
        raise ValueError(f"speed is {speed!r}; allowed: 0.01..1000") from None
    return engine.at_speed(factor)
