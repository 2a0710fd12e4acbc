"""Bounds on active requests, and the Retry-After that comes from the drain rate. Time is arithmetic."""

from penstock_router.admission import Admission, AdmissionLimits


def test_the_bounds_hold_in_all_and_per_model():
    """The third of one model and the fourth of all are turned away; a release makes room again."""
    admission = Admission(AdmissionLimits(total_requests=3, model_requests=2))
    assert [admission.admit("a", 0.0), admission.admit("a", 0.0)] == [None, None]
    assert admission.admit("a", 0.0) is not None
    assert admission.admit("b", 0.0) is None
    assert admission.admit("b", 0.0) is not None
    admission.release("a", 0.0)
    assert admission.admit("b", 0.0) is None
    assert (admission.active, admission.active_in("a"), admission.active_in("b"), admission.active_in("c")) == (3, 1, 2, 0)


def test_retry_after_follows_the_drain_rate():
    """At two completions a second the 1st, 4th and 20th turned away are told 1, 2 and 10 seconds; with no drain at all, a minute."""
    admission = Admission(AdmissionLimits(total_requests=10, model_requests=10))
    for _ in range(10):
        admission.admit("m", 0.0)
    assert admission.admit("m", 0.0) == 60
    now = 0.0
    for _ in range(200):
        now += 0.5
        admission.release("m", now)
        admission.admit("m", now)
    told = [admission.admit("m", now) for _ in range(20)]
    assert (told[0], told[3], told[19]) == (1, 2, 10)


def test_a_rate_of_long_ago_is_forgotten():
    """An hour without a completion leaves no rate to promise anything from."""
    admission = Admission(AdmissionLimits(total_requests=1, model_requests=1))
    admission.admit("m", 0.0)
    admission.release("m", 0.1)
    admission.admit("m", 0.2)
    assert admission.admit("m", 3600.0) == 60
