"""What the command line may say of the autoscaler, and what it means."""

import pytest
from penstock_cli.scaled_pools import Bounds, parse_bounds, parse_scaling
from penstock_cli.up_plan import UpPlan, replicas_of, slo_of
from penstock_core.errors import PenstockError
from penstock_core.slo import Slo


def test_bounds_are_read_by_pool() -> None:
    """Spaces do not matter; nothing given is no autoscaler."""
    assert parse_bounds("prefill=1..2, decode = 0..16") == {"prefill": Bounds(1, 2), "decode": Bounds(0, 16)}
    assert parse_bounds("") == {}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("both", "allowed: pool=least..most"),
        ("both=1-4", "allowed: pool=least..most"),
        ("gpu=1..4", "prefill, decode, both"),
        ("both=4..1", "both is 4..1"),
        ("both=0..0", "most 1..64"),
        ("both=1..65", "most 1..64"),
        ("both=1..2,both=1..4", "twice"),
        ("both=1..2,", "allowed: pool=least..most"),
    ],
)
def test_bounds_that_make_no_sense_are_named(written: str, said: str) -> None:
    """With the value and what is allowed."""
    with pytest.raises(PenstockError, match=said.replace(".", r"\.")):
        parse_bounds(written)


def test_a_scaled_pool_starts_at_its_least() -> None:
    """Unless told otherwise; pools that are not named are not there, and one that may sleep starts awake."""
    assert replicas_of(None, None, None, {}) == {"prefill": 1, "decode": 2, "both": 0}
    assert replicas_of(0, 0, 1, {}) == {"prefill": 0, "decode": 0, "both": 1}
    assert replicas_of(None, None, None, parse_bounds("both=0..4")) == {"prefill": 0, "decode": 0, "both": 1}
    assert replicas_of(None, 3, None, parse_bounds("prefill=2..4")) == {"prefill": 2, "decode": 3, "both": 0}


def test_a_start_outside_the_bounds_is_refused() -> None:
    """With the pool, its size and the bounds."""
    with pytest.raises(PenstockError, match=r"both is 5; allowed with --autoscale both: 1\.\.4"):
        UpPlan(prefill=0, decode=0, both=5, bounds={"both": Bounds(0, 4)})


def test_targets_are_the_routers_too() -> None:
    """One that is not named stays as it is by default."""
    assert slo_of(None, None) is None
    assert slo_of(500.0, None) == Slo(0.5, 0.05)
    words = UpPlan(slo=slo_of(500.0, 20.0), bounds={"decode": Bounds(1, 4)}, scaling=parse_scaling({"window_s": 1})).router_options()
    assert 'models=[{"name":"sim","slo":{"ttft_s":0.5,"itl_s":0.02}}]' in words
    assert "--model" not in words
    assert "traffic_window_s=1" in words


def test_settings_of_the_autoscaler_are_checked() -> None:
    """Each by its owner's range; one that nobody knows is named with those that are."""
    found = parse_scaling({"period_s": 5, "lease_s": 3.0, "window_s": 0.5})
    assert (found.scaler.period_s, found.times.period_s, found.times.lease_s, found.window_s) == (5.0, 5.0, 3.0, 0.5)
    for wrong, said in (
        ({"perod_s": 5}, "perod_s"),
        ({"period_s": 0}, "period_s is 0"),
        ({"window_s": 0.1}, "window_s is 0.1"),
        ({"window_s": 11}, "window_s is 11"),
        ({"quiet_s": 0}, "quiet_s is 0"),
    ):
        with pytest.raises(PenstockError, match=said):
            parse_scaling(wrong)
    with pytest.raises(PenstockError, match="period_s"):
        parse_scaling({"period_s": "often"})
