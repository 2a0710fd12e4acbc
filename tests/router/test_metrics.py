"""The router's figures as Prometheus reads them."""

from penstock_core import metric_names
from penstock_core.errors import Outcome
from penstock_router.length_classes import LengthClasses
from penstock_router.metrics import Figures, registry_of
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families


class Gauges:
    """A model with two live endpoints and an index."""

    name = "m"
    chunks = 7
    waiting = 3
    held = 2
    wakeable = True
    lag_s = 0.25
    profiles = ()
    lengths = LengthClasses()
    reloads = {"gap": 2}  # noqa: RUF012

    def live_by_role(self):
        return {"prefill": 1, "decode": 1}


def scrape(figures):
    text = generate_latest(registry_of(figures)).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_and_histograms_come_out_as_they_went_in():
    """Counts, sums and cumulative buckets, a value on a bound counted in that bound's bucket."""
    figures = Figures()
    figures.model("m").outcomes[Outcome.OK] += 3
    for value in (0.005, 0.006, 99.0):
        figures.model("m").ttft.observe(value)
    figures.retried("connect")
    figures.fell_back("refused")
    samples = scrape(figures)
    assert samples["penstock_router_requests_total", (("model", "m"), ("outcome", "ok"))] == 3
    assert samples["penstock_router_ttft_seconds_bucket", (("le", "0.005"), ("model", "m"))] == 1
    assert samples["penstock_router_ttft_seconds_bucket", (("le", "60.0"), ("model", "m"))] == 2
    assert samples["penstock_router_ttft_seconds_count", (("model", "m"),)] == 3
    assert samples["penstock_router_ttft_seconds_sum", (("model", "m"),)] == 99.011
    assert samples["penstock_router_retries_total", (("reason", "connect"),)] == 1
    assert samples["penstock_router_prefill_fallback_total", (("reason", "refused"),)] == 1


def test_every_router_and_index_metric_is_exported():
    """The list in core and the scrape name the same families."""
    figures = Figures()
    figures.model("m")
    figures.gauges = lambda: (Gauges(),)
    names = {family.name for family in registry_of(figures).collect()}
    declared = {m.name.removesuffix("_total") for m in metric_names.ALL if m.name.startswith(("penstock_router_", "penstock_kvindex_"))}
    assert names == declared
    samples = scrape(figures)
    assert samples["penstock_router_endpoints", (("model", "m"), ("role", "prefill"))] == 1
    assert samples["penstock_kvindex_reloads_total", (("reason", "gap"),)] == 2
    assert samples["penstock_kvindex_lag_seconds", (("model", "m"),)] == 0.25
