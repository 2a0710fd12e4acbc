"""What a restarted autoscaler goes on with."""

import msgspec
import numpy as np
import pytest
from loop_world import made
from penstock_autoscaler.memory import MOST_REQUESTS, Memory, Tried, Wanted, decode, encode
from penstock_autoscaler.settings import ScalerSettings
from penstock_core.slo import Attainment
from penstock_core.traffic import Ended, Window
from penstock_kvindex.scaling import MOST_MEMORY_BYTES


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
    memory = Memory(wanted=[Wanted(10.0, {"a": 3})], tried=[Tried(10.0, {"a": 3}, 2.5, 900.0, Attainment(10, 9, 9, 8))])
    memory.add(window(0.0, 10.0), ScalerSettings())
    back = decode(encode(memory))
    assert (back.wanted, back.tried, back.counts, back.season) == (memory.wanted, memory.tried, memory.counts, memory.season)
    ended = back.windows[0].ended
    assert (ended.arrival_s.dtype, ended.prompt_tokens.dtype, ended.ok.dtype) == (np.float64, np.int64, np.bool_)
    assert ended.ok.tolist() == [True]
    assert np.isnan(ended.tpot_s).all()


@pytest.mark.parametrize("kept", [b"", b"\x80\x81", msgspec.msgpack.encode({"windows": [{"since_s": "soon"}]})])
def test_bytes_that_are_no_memory_are_refused(kept: bytes) -> None:
    """By an error that the loop can tell from others."""
    with pytest.raises(msgspec.DecodeError):
        decode(kept)


def test_only_the_latest_traffic_is_kept() -> None:
    """What ended before the sample began is forgotten."""
    memory, settings = Memory(), ScalerSettings(sample_s=30.0, trend_s=50.0, period_s=10.0)
    for start in range(0, 100, 10):
        memory.add(window(start, start + 10.0), settings)
    assert [one.since_s for one in memory.windows] == [70.0, 80.0, 90.0]
    assert [one.until_s for one in memory.counts] == [60.0, 70.0, 80.0, 90.0, 100.0]


@pytest.mark.parametrize(("rate", "length_s"), [(300, 15.0), (20, 3_600.0)])
def test_of_busy_traffic_as_much_is_kept_as_the_store_takes(rate: int, length_s: float) -> None:
    """The latest, more than any sample needs; of one interval that alone is more, requests at even steps. Counts are those of all."""
    memory, settings = Memory(), ScalerSettings(period_s=length_s, sample_s=40 * length_s, trend_s=40 * length_s)
    many = round(rate * length_s)
    for turn in range(40):
        memory.add(made(turn * length_s, (turn + 1) * length_s, many, ended=(many, 0), endings=many), settings)
    assert len(encode(memory)) < MOST_MEMORY_BYTES
    kept = [len(one.arrival_s) for one in memory.windows]
    assert 10 * settings.sample_requests < sum(kept) <= MOST_REQUESTS
    assert memory.windows[-1].until_s == 40 * length_s
    assert memory.windows[-1].arrivals == many
    assert memory.windows[0].since_s == memory.windows[-1].until_s - len(kept) * length_s
    assert sum(one.arrivals for one in memory.counts) == 40 * many


def test_a_lost_interval_begins_the_counts_anew() -> None:
    """Half an hour without metrics is no trend and no stable window."""
    memory, settings = Memory(wanted=[Wanted(5.0, {"a": 1})]), ScalerSettings(period_s=10.0)
    memory.add(window(0.0, 10.0), settings)
    memory.add(window(1_800.0, 1_810.0), settings)
    assert len(memory.windows) == len(memory.counts) == 1
    assert memory.wanted == []


def test_what_was_learned_of_another_profile_is_forgotten() -> None:
    """When a pool's profile is measured for the first time, and when it no longer is; what is known of other pools stays."""
    memory = Memory(corrections={"a": 1.5, "b": 2.0})
    memory.trust({"a"})
    assert memory.corrections == {"b": 2.0}
    memory.corrections["a"] = 1.2
    memory.trust({"a"})
    assert decode(encode(memory)).corrections == {"a": 1.2, "b": 2.0}
    memory.trust(set())
    assert memory.corrections == {"b": 2.0}
