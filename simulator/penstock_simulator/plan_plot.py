"""A picture of a dry run: arrivals, replicas by pool, and attainment, over time. For `penstock plan --plot`.

Needs matplotlib, which comes with the extra `plots`. The file's ending decides between PNG and SVG.
"""

from pathlib import Path

from penstock_simulator.dry_run import DryRun
from penstock_simulator.plots import FORMATS, draw_sizes, pyplot


def draw_plan(found: DryRun, goal_ratio: float, path: Path) -> None:
    """Write the picture. Raises PlotsMissing without matplotlib, ValueError for another ending than .png and .svg."""
    form = path.suffix.removeprefix(".")
    if form not in FORMATS:
        raise ValueError(f"plot is {path.name!r}; allowed: a name that ends with {' or '.join('.' + one for one in FORMATS)}")
    plt = pyplot()
    figure, (rate, sizes, met) = plt.subplots(3, 1, figsize=(11, 8), sharex=True)
    minutes = [one.at_s / 60.0 for one in found.minutes]
    rate.step(minutes, [one.arrivals / 60.0 for one in found.minutes], where="post")
    rate.set(ylabel="requests a second", ylim=(0, None), title=found.summary.workload)
    draw_sizes(sizes, found.ticks, 60.0)
    met.step(minutes, [100.0 * one.good / one.arrivals if one.arrivals else float("nan") for one in found.minutes], where="post")
    met.axhline(100.0 * goal_ratio, color="grey", linestyle=":", label="goal")
    met.set(ylabel="met both targets, in %", xlabel="minutes", ylim=(0, 101))
    met.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format=form, bbox_inches="tight")
    plt.close(figure)
