"""Stories of a local fleet in which minutes pass by arithmetic."""

import pytest
from penstock_worker.fleet_plan import Action, Do, FleetLimits, Observed, Phase, plan

LIMITS = FleetLimits(start_s=100, drain_s=50, silent_s=20, backoff_first_s=1, backoff_most_s=8)


def seen(name, phase, since_s=0.0, **more):
    return Observed(id=name, pool=name.rpartition("-")[0], phase=phase, since_s=since_s, **more)


def steps(desired, observed, now_s=0.0):
    return [(action.do, action.id) for action in plan(desired, observed, LIMITS, now_s)]


def test_missing_workers_are_started_and_then_waited_for():
    """Two pools come up from nothing; while they start there is nothing to do."""
    assert steps({"p": 1, "d": 2}, []) == [(Do.START, "p-0"), (Do.START, "d-0"), (Do.START, "d-1")]
    assert steps({"p": 1, "d": 1}, [seen("p-0", Phase.STARTING), seen("d-0", Phase.READY)], 99) == []


def test_the_same_state_gives_the_same_plan():
    """Level-triggered: planning twice, or in another order of observations, changes nothing."""
    observed = [seen("p-0", Phase.DEAD, failures=1), seen("p-1", Phase.READY)]
    assert plan({"p": 1}, observed, LIMITS, 5.0) == plan({"p": 1}, observed, LIMITS, 5.0)
    assert set(steps({"p": 1}, observed, 5)) == set(steps({"p": 1}, observed[::-1], 5)) == {(Do.START, "p-0"), (Do.DRAIN, "p-1")}


def test_a_surplus_drains_before_it_goes():
    """Scale-in: drain, wait, stop once drained, forget once gone; the lowest numbers stay."""
    stay = seen("p-0", Phase.READY)
    assert steps({"p": 1}, [stay, seen("p-1", Phase.READY)]) == [(Do.DRAIN, "p-1")]
    assert steps({"p": 1}, [stay, seen("p-1", Phase.DRAINING, 10)], 59) == []
    assert steps({"p": 1}, [stay, seen("p-1", Phase.DRAINED, 30)], 30) == [(Do.STOP, "p-1")]
    assert steps({"p": 1}, [stay, seen("p-1", Phase.DEAD, 31)], 31) == [(Do.FORGET, "p-1")]


def moved(name, pool, phase, since_s=0.0, **more):
    return Observed(id=name, pool=pool, phase=phase, since_s=since_s, **more)


def test_a_worker_in_another_pool_changes_its_role_and_stays():
    """It counts where it is now: nothing is started for it there, its old pool misses nothing, and its name is not given again."""
    there = [seen("p-0", Phase.READY), moved("p-1", "d", Phase.READY, misplaced=True), seen("d-0", Phase.READY)]
    assert steps({"p": 1, "d": 2}, there) == [(Do.SWITCH, "p-1")]
    there[1] = moved("p-1", "d", Phase.SWITCHING)
    assert steps({"p": 1, "d": 2}, there, 49) == []
    assert steps({"p": 1, "d": 2}, there, 50) == [(Do.STOP, "p-1")]
    there[1] = moved("p-1", "d", Phase.READY)
    assert steps({"p": 1, "d": 2}, there, 60) == []
    assert steps({"p": 2, "d": 2}, there, 60) == [(Do.START, "p-2")]


def test_workers_from_other_pools_go_first():
    """A pool that shrinks keeps its own; one that is still changing its role drains."""
    there = [moved("p-0", "d", Phase.SWITCHING), seen("d-0", Phase.READY), seen("d-1", Phase.READY)]
    assert steps({"p": 0, "d": 2}, there) == [(Do.DRAIN, "p-0")]
    assert steps({"p": 0, "d": 3}, there) == []


def test_the_tenth_worker_comes_after_the_ninth():
    """Numbers are numbers."""
    there = [seen(f"p-{number}", Phase.READY) for number in range(11)]
    assert steps({"p": 10}, there) == [(Do.DRAIN, "p-10")]


def test_a_drain_has_a_deadline():
    """A worker whose streams never end is stopped when the drain's time is up."""
    assert steps({}, [seen("p-0", Phase.DRAINING, 10)], 59.9) == []
    assert steps({}, [seen("p-0", Phase.DRAINING, 10)], 60) == [(Do.STOP, "p-0")]


@pytest.mark.parametrize(("failures", "wait_s"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (500, 8)])
def test_restarts_back_off(failures, wait_s):
    """Each further failure doubles the wait, up to the most."""
    dead = seen("p-0", Phase.DEAD, since_s=100, failures=failures)
    assert steps({"p": 1}, [dead], 100 + wait_s - 0.01) == []
    assert steps({"p": 1}, [dead], 100 + wait_s) == [(Do.START, "p-0")]


def test_a_worker_wanted_again_while_it_drains_ends_and_starts_anew():
    """A drain cannot be taken back."""
    assert steps({"p": 1}, [seen("p-0", Phase.DRAINING)], 1) == []
    assert steps({"p": 1}, [seen("p-0", Phase.DRAINED)], 1) == [(Do.STOP, "p-0")]
    assert steps({"p": 1}, [seen("p-0", Phase.DEAD, failures=0)], 1) == [(Do.START, "p-0")]


def test_a_start_that_never_ends_is_ended():
    """Not ready after its time: stop, and the next plan starts it anew."""
    assert steps({"p": 1}, [seen("p-0", Phase.STARTING)], 100) == [(Do.STOP, "p-0")]


def test_a_start_that_somebody_gave_up_is_tried_anew():
    """Before its time; one that is ready by now is left alone."""
    assert steps({"p": 1}, [seen("p-0", Phase.STARTING, given_up=True)], 7) == [(Do.STOP, "p-0")]
    assert steps({"p": 1}, [seen("p-0", Phase.READY, given_up=True)], 7) == []


def test_a_silent_worker_is_replaced():
    """A ready worker that has not answered for its time is ended; one that answers again in time is left alone."""
    assert steps({"p": 1}, [seen("p-0", Phase.READY, silent_since_s=10)], 29.9) == []
    assert steps({"p": 1}, [seen("p-0", Phase.READY, silent_since_s=10)], 30) == [(Do.STOP, "p-0")]


def test_a_worker_that_is_not_ready_yet_needs_no_drain():
    """Scale-in during a start stops it at once."""
    assert steps({"p": 0}, [seen("p-0", Phase.STARTING)]) == [(Do.STOP, "p-0")]


def test_reasons_are_in_words():
    """Each action says why."""
    assert plan({}, [seen("p-0", Phase.READY)], LIMITS, 0) == [Action(Do.DRAIN, "p-0", "p", "not desired")]


def test_limits_name_what_is_wrong():
    """A wait of 0 is refused by name."""
    with pytest.raises(ValueError, match="drain_s is 0; allowed: more than 0 seconds"):
        FleetLimits(drain_s=0)
