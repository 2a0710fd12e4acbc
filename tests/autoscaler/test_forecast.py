"""How far ahead a rate is believed."""

import pytest
from penstock_autoscaler.forecast import Season, forecast
from penstock_autoscaler.trend import Trend


@pytest.mark.parametrize(("slope", "lasted_s", "expected"), [(0.02, 600.0, 5.2), (0.02, 60.0, 4.6), (-0.02, 600.0, 4.0), (0.0, 600.0, 4.0)])
def test_half_of_a_rise_is_carried_on_and_no_fall(slope: float, lasted_s: float, expected: float) -> None:
    """To when a replica asked for now would serve, but no longer than it has lasted."""
    found = forecast(Trend(rate=4.0, slope=slope, length_s=lasted_s, error=0.1, dispersion=1.0), Season(), 0.0, 120.0)
    assert found.expected == pytest.approx(expected)
    assert found.now == 4.0
