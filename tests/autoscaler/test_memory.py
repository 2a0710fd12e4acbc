"""What a restarted autoscaler goes on with."""

import numpy as np
from penstock_autoscaler.memory import Memory, Wanted, decode, encode
from penstock_autoscaler.settings import ScalerSettings
from penstock_core.traffic import Ended, Window


def window(since_s: float, until_s: float) -> Window:
    ended = Ended(
        arrival_s=np.array([since_s]),
        prompt_tokens=np.array([2_000]),
        hit_tokens=np.array([64]),
        output_tokens=np.array([10]),
        ttft_s=np.array([0.25]),
        tpot_s=np.array([np.nan]),
        ok=np.array([True]),
    )
    return Window(
        since_s=since_s,
        until_s=until_s,
        arrival_s=np.array([since_s]),
        prompt_tokens=np.array([2_000]),
        ended=ended,
        arrivals=1,
        endings=1,
    )


def test_memory_survives_as_bytes() -> None:
    """Arrays come back with their types, missing figures as such."""
    memory = Memory(windows=[window(0.0, 10.0)], wanted=[Wanted(10.0, {"a": 3})])
    back = decode(encode(memory))
    assert back.wanted == memory.wanted
    ended = back.windows[0].ended
    assert (ended.arrival_s.dtype, ended.prompt_tokens.dtype, ended.ok.dtype) == (np.float64, np.int64, np.bool_)
    assert ended.ok.tolist() == [True]
    assert np.isnan(ended.tpot_s).all()


def test_only_the_latest_traffic_is_kept() -> None:
    """What ended before the sample began is forgotten, and an interval counts once."""
    memory = Memory()
    for start in range(0, 100, 10):
        memory.add(window(start, start + 10.0), ScalerSettings(sample_s=30.0))
    memory.add(window(90.0, 100.0), ScalerSettings(sample_s=30.0))
    assert [one.since_s for one in memory.windows] == [70.0, 80.0, 90.0]
