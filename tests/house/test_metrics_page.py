"""docs/metrics.md and core's list of metrics say the same."""

import re
from pathlib import Path

import pytest
from penstock_cli.reference import BEGIN, END, metrics_table, with_table
from penstock_core.metric_names import ALL, Metric

ROOT = Path(__file__).parents[2]


def test_the_page_lists_every_metric_once_and_no_other() -> None:
    """Read back from the page's rows, not from the generator."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    generated = page.split(BEGIN)[1].split(END)[0]
    rows = [re.findall(r"`(penstock_[a-z_]+)` \| (\w+) \| ([^|]*) \|", line) for line in generated.splitlines()]
    listed = [row[0] for row in rows if row]
    assert listed == [(metric.name, metric.kind, ", ".join(metric.labels) or "–") for metric in ALL]


def test_every_metric_named_anywhere_in_the_docs_exists() -> None:
    """A renamed metric must not live on in prose."""
    names = {metric.name for metric in ALL}
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    named = {word for page in pages for word in re.findall(r"`(penstock_(?:router|worker|kvindex)_[a-z_]+)`", page.read_text())}
    assert named - names == set()


def test_metric_names_carry_their_unit() -> None:
    """Counters end in _total; a histogram's name ends in its unit."""
    assert [metric.name for metric in ALL if (metric.kind == "counter") != metric.name.endswith("_total")] == []
    assert [metric.name for metric in ALL if metric.kind == "histogram" and not metric.name.endswith(("_seconds", "_ratio"))] == []


def test_a_page_without_marks_is_refused() -> None:
    """Overwriting prose by accident is worse than an error."""
    with pytest.raises(ValueError, match="lacks one of its marks"):
        with_table("# Metrics\n", metrics_table([Metric("penstock_x_total", "counter", (), "X.")]))
