"""The requests that replays are made of: even, whatever the rate did meanwhile."""

import numpy as np
import pytest
from penstock_autoscaler.sample import sample
from penstock_autoscaler.trend import Count, trend
from penstock_core.traffic import Ended, Window


def ramped(until_s: float, since: float, until: float) -> Window:
    """Arrivals without noise at a rate that goes evenly from one to the other, all answered."""
    arrivals = round((since + until) / 2.0 * until_s)
    slope = (until - since) / until_s
    due = np.arange(arrivals) + 0.5
    arrival_s = (np.sqrt(since**2 + 2.0 * slope * due) - since) / slope
    prompts, seconds = np.full(arrivals, 1_000), np.full(arrivals, 0.1)
    ended = Ended(
        arrival_s=arrival_s,
        prompt_tokens=prompts,
        hit_tokens=prompts * 0,
        output_tokens=prompts // 10,
        ttft_s=seconds,
        tpot_s=seconds,
        ok=np.full(arrivals, True),
    )
    return Window(
        since_s=0.0, until_s=until_s, arrival_s=arrival_s, prompt_tokens=prompts, ended=ended, arrivals=arrivals, endings=arrivals
    )


@pytest.mark.parametrize(("since", "until"), [(2.0, 10.0), (10.0, 2.0)])
def test_a_ramp_is_evened(since: float, until: float) -> None:
    """Half of the requests in half of the time: else a replay would judge a size by a peak, or a lull, that the ramp put there."""
    window = ramped(600.0, since, until)
    ends = np.arange(15.0, 601.0, 15.0)
    counts = np.diff(np.searchsorted(window.arrival_s, [0.0, *ends.tolist()]))
    found = trend([Count(at, 15.0, many) for at, many in zip(ends.tolist(), counts.tolist(), strict=True)])
    made = sample([window], 10_000, found.pieces)
    assert made is not None
    half = made.arrival_s[made.requests // 2] / made.arrival_s[-1]
    assert half == pytest.approx(0.5, abs=0.03)
    assert made.length_s == pytest.approx(made.requests, rel=0.05)
