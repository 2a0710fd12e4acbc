"""Pictures of replays: TTFT and ITL distributions, goodput by load and policy, and load, hits and an autoscaler's sizes over time.

Needs matplotlib, which comes with the extra `plots`. The file's ending decides between PNG and SVG.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from penstock_core.errors import PenstockError

from penstock_simulator import fleet as fl
from penstock_simulator.autoscaled import Tick
from penstock_simulator.report import Summary, request_ttft_s, summarise
from penstock_simulator.setup import Replay

FORMATS = ("png", "svg")


class PlotsMissing(PenstockError):
    """matplotlib is not installed; install the extra."""


def draw(replays: list[Replay], folder: Path, form: str = "png", decided: Sequence[Sequence[Tick]] = ()) -> list[Path]:
    """Write `latencies`, `goodput` and one `workers-POLICY-N` picture a replay into `folder`; gives their paths.

    `decided`: what an autoscaler decided in each replay; its sizes are drawn below the workers.

    Raises PlotsMissing without matplotlib, ValueError for another format than png and svg.
    """
    if form not in FORMATS:
        raise ValueError(f"plot format is {form!r}; allowed: {', '.join(FORMATS)}")
    plt = pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [("latencies", _latencies(plt, replays))]
    summaries = [summarise(one) for one in replays]
    one_load = len({one.policy for one in summaries}) == len(summaries)
    pictures.append(("goodput", (_goodput_bars if one_load else _goodput)(plt, summaries)))
    pictures += [(f"workers-{_word(one, at)}", _workers(plt, one, decided[at] if decided else ())) for at, one in enumerate(replays)]
    paths = []
    for name, figure in pictures:
        paths.append(folder / f"{name}.{form}")
        figure.savefig(paths[-1], format=form, bbox_inches="tight")
        plt.close(figure)
    return paths


def pyplot() -> Any:
    """matplotlib, drawing into files. Raises PlotsMissing."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise PlotsMissing("plots need matplotlib; install the extra `plots`: pip install 'penstock[plots]'") from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _word(replay: Replay, at: int) -> str:
    policy = replay.setup.policy.replace(":", "-")
    return f"{policy}-{at}"


def _latencies(plt: Any, replays: list[Replay]) -> Any:
    figure, (ttft_axes, itl_axes) = plt.subplots(1, 2, figsize=(11, 4))
    for replay in replays:
        ttft = np.sort(request_ttft_s(replay)[~np.isnan(request_ttft_s(replay))])
        ttft_axes.plot(ttft * 1e3, np.arange(1, len(ttft) + 1) / max(1, len(ttft)), label=replay.setup.policy)
        edges = fl.GAP_LEAST_S * np.exp((np.arange(fl.GAP_BINS) + 0.5) / fl.GAP_BINS_PER_E) * 1e3
        seen = np.flatnonzero(replay.gaps)
        if len(seen):
            shown = slice(seen[0], seen[-1] + 1)
            itl_axes.plot(edges[shown], np.cumsum(replay.gaps)[shown] / replay.gaps.sum(), label=replay.setup.policy)
    slo = replays[0].setup.slo
    for axes, name, target in ((ttft_axes, "TTFT", slo.ttft_s), (itl_axes, "ITL", slo.itl_s)):
        axes.axvline(target * 1e3, color="grey", linestyle=":", label="target")
        axes.set(xscale="log", xlabel=f"{name} in ms", ylabel="share at or below", ylim=(0, 1))
        axes.legend()
    return figure


def _goodput(plt: Any, summaries: list[Summary]) -> Any:
    """Goodput over the load offered; one line a policy."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for policy in dict.fromkeys(one.policy for one in summaries):
        points = sorted((one.rate, one.goodput_ratio * 100) for one in summaries if one.policy == policy)
        axes.plot([load for load, _ in points], [good for _, good in points], marker="o", label=policy)
    axes.set(xlabel="requests a second", ylabel="goodput in %")
    axes.legend()
    return figure


def _goodput_bars(plt: Any, summaries: list[Summary]) -> Any:
    """Of one load: there is no line to draw, but policies to compare."""
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.bar([one.policy for one in summaries], [one.goodput_ratio * 100 for one in summaries])
    axes.set(xlabel=f"{summaries[0].rate:.3g} requests a second", ylabel="goodput in %", ylim=(0, 100))
    return figure


def draw_sizes(axes: Any, ticks: Sequence[Tick], unit_s: float = 1.0) -> None:
    """Replicas that are ready and those desired, by pool, over time in units of so many seconds."""
    times = [tick.decision.at_s / unit_s for tick in ticks]
    for pool in ticks[0].decision.desired if ticks else ():
        (line,) = axes.step(times, [tick.replicas.get(f"{pool} ready", 0) for tick in ticks], where="post", label=f"{pool}, ready")
        wanted = [tick.decision.desired[pool] for tick in ticks]
        axes.step(times, wanted, where="post", linestyle=":", color=line.get_color(), label=f"{pool}, desired")
    axes.set(ylabel="replicas", ylim=(0, None))
    axes.legend()


def _workers(plt: Any, replay: Replay, decided: Sequence[Tick]) -> Any:
    """Requests at each worker and its hits, over time; sizes, where an autoscaler decided."""
    figure, (load_axes, hit_axes, *more) = plt.subplots(3 if decided else 2, 1, figsize=(11, 8 if decided else 6), sharex=True)
    highest = 1.0
    times = [sample.now_s for sample in replay.samples]
    for w, spec in enumerate(replay.setup.workers):
        load_axes.plot(times, [sample.running[w] + sample.waiting[w] for sample in replay.samples], linewidth=0.8, label=spec.id)
        hits = np.array([sample.hit_tokens[w] for sample in replay.samples], float)
        prompts = np.array([sample.prompt_tokens[w] for sample in replay.samples], float)
        shares = 100 * hits / np.maximum(1.0, prompts)
        hit_axes.plot(times, shares, linewidth=0.8)
        highest = max(highest, float(shares.max(initial=0.0)))
    load_axes.set(ylabel="requests there", title=replay.setup.policy)
    load_axes.legend(ncols=4, fontsize="small")
    hit_axes.set(ylabel="hit tokens so far in %", ylim=(0, 1.05 * highest))
    for axes in more:
        draw_sizes(axes, decided)
    figure.axes[-1].set(xlabel="seconds")
    return figure
