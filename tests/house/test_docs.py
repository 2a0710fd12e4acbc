"""The docs and the code say the same: metrics and settings."""

import re
from pathlib import Path

import pytest
from penstock_cli.reference import TABLES, between_marks, field_texts, metrics_table, with_table
from penstock_cli.scaled_pools import parse_scaling
from penstock_core.errors import PenstockError
from penstock_core.metric_names import ALL, Metric
from penstock_router.config import RouterConfig
from penstock_simulator.generate import KINDS, Traffic, parse_traffic
from penstock_worker.config import WorkerConfig

ROOT = Path(__file__).parents[2]


def test_the_page_lists_every_metric_once_and_no_other() -> None:
    """Read back from the page's rows, not from the generator."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    generated = between_marks(page, "metrics")[1]
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
    with pytest.raises(ValueError, match="lacks one of the marks"):
        with_table("# Metrics\n", "metrics", metrics_table([Metric("penstock_x_total", "counter", (), "X.")]))


def test_every_setting_of_router_and_worker_stands_in_the_docs() -> None:
    """Read back from the page: each field of both configs has a row."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    for name, config in (("router settings", RouterConfig), ("worker settings", WorkerConfig)):
        listed = re.findall(r"^\| `(\w+)` \|", between_marks(page, name)[1], re.MULTILINE)
        assert listed == list(config.__struct_fields__)


def test_every_setting_that_autoscale_set_takes_stands_in_the_docs() -> None:
    """And no other: those of the table are taken, and the refusal of an unknown one names the same."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| ([0-9.,]+) \|", between_marks(page, "autoscale-set settings")[1], re.MULTILINE)
    parse_scaling({name: float(default.replace(",", "")) if "." in default else int(default) for name, default in listed})
    with pytest.raises(PenstockError) as refused:
        parse_scaling({"watch_namespace": 1})
    assert sorted(name for name, _ in listed) == str(refused.value).rpartition("allowed: ")[2].split(", ")


def test_every_kind_of_made_up_traffic_stands_in_the_docs_with_settings_it_takes() -> None:
    """Read back from the page: each row's own settings are taken with their defaults."""
    page = (ROOT / "docs" / "simulator.md").read_text()
    kinds = re.findall(r"^\| `([a-z-]+)` \| ([^|]*) \|", between_marks(page, "kinds of traffic")[1], re.MULTILINE)
    defaults = dict(re.findall(r"^\| `(\w+)` \| ([0-9.,]+) \|", between_marks(page, "traffic settings")[1], re.MULTILINE))
    assert [kind for kind, _ in kinds] == list(KINDS)
    for kind, own in kinds:
        names = [*list(defaults)[:5], *re.findall(r"`(\w+)`", own)]
        assert parse_traffic(f"{kind}:{','.join(f'{name}={defaults[name]}' for name in names)}") == Traffic(kind=kind)


def test_pages_are_as_the_code_would_write_them() -> None:
    """What `make check` asks, so that a test run alone shows it too."""
    for path, tables in TABLES.items():
        page = (ROOT / path).read_text()
        for name, made in tables.items():
            assert with_table(page, name, made()) == page, f"{path} is stale: run `make docs`"


def test_a_fields_text_is_the_string_below_it() -> None:
    """Fields without one are left out; pipes do not break the table."""
    texts = field_texts(RouterConfig)
    assert texts["drain_s"] == "How long streams may go on after SIGTERM."
    assert "host" not in texts
