"""How long starts took, as pools get it."""

import msgspec
import pytest
from penstock_autoscaler.observation import Phase, Replica, Start
from penstock_autoscaler.starts import MOST_POOLS, MOST_STARTS, Starts, start_of
from penstock_core.endpoint import Role, StartUp
from scaling_world import pool


def replica(start: Start | None, of: str = "both") -> Replica:
    return Replica(id="r", pool=of, role=Role.BOTH, phase=Phase.READY, asked_s=0.0, ready_s=1.0, start=start)


def test_a_pool_takes_what_its_replicas_took() -> None:
    """The median of the whole and of each phase; a pool whose replicas have not started keeps what is declared."""
    starts = Starts()
    pools = (pool("both"), pool("other"))
    assert starts.measured(pools) == pools
    starts.see(replica(Start(name=str(n), schedule_s=1.0, engine_s=float(took))) for n, took in enumerate((10, 90, 20)))
    starts.see([replica(None), replica(None, of="other")])
    both, other = starts.measured(pools)
    assert both.start_s == 21.0
    assert both.start is not None
    assert (both.start.schedule_s, both.start.engine_s, both.start.pull_s) == (1.0, 20.0, 0.0)
    assert other == pools[1]


def test_the_first_word_about_a_start_stands_also_after_a_restart() -> None:
    """A replica that lost its readiness and found it again has not started more slowly."""
    starts = Starts()
    starts.see([replica(Start(name="a", engine_s=10.0))])
    again = Starts(msgspec.msgpack.decode(msgspec.msgpack.encode(starts.kept()), type=dict[str, list[Start]]))
    again.see([replica(Start(name="a", engine_s=500.0))])
    assert again.measured([pool()])[0].start_s == 10.0


def test_only_the_latest_starts_count() -> None:
    """Of a bounded number of pools."""
    starts = Starts()
    starts.see(replica(Start(name=str(n), engine_s=float(n))) for n in range(100))
    assert starts.measured([pool()])[0].start_s == 100 - (MOST_STARTS + 1) / 2
    starts.see(replica(Start(name="a"), of=f"pool-{n}") for n in range(200))
    assert len(starts.kept()) == MOST_POOLS


@pytest.mark.parametrize("total_s", [0.0, 5.0, 12.0, 40.0])
def test_phases_are_never_below_nothing_nor_above_the_whole(total_s: float) -> None:
    """Though the API server, the node and the worker each have a clock."""
    own = StartUp(began_s=100.0, listening_s=102.0, ready_s=110.0)
    start = start_of("a", total_s, schedule_s=1.0, pull_s=3.0, own=own)
    assert min(getattr(start, name) for name in Start.__struct_fields__ if name != "name") >= 0.0
    assert start.total_s == pytest.approx(total_s)
    if total_s >= 14.0:
        assert (start.process_s, start.engine_s, start.rest_s) == (2.0, 8.0, total_s - 14.0)
