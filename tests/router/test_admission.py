"""Bounds in all and quotas of tenants, and the Retry-After that comes from the drain rate. Time is arithmetic."""

import pytest
from penstock_core.errors import Outcome
from penstock_router.admission.bounds import Admission
from penstock_router.keys import Tenant

FREE = Tenant("free")


def told(admission: Admission, now: float) -> int | None:
    turned = admission.admit(FREE, 1.0, now)
    return turned.retry_after_s if turned is not None else None


def test_the_bound_holds_in_all():
    """The fourth of three is turned away; a release makes room again."""
    admission = Admission(3)
    assert [told(admission, 0.0) for _ in range(4)] == [None, None, None, 60]
    admission.release(FREE, 1.0, 1.0, 0.0)
    assert told(admission, 0.0) is None
    assert admission.active == 3


def test_retry_after_follows_the_drain_rate():
    """At two completions a second the 1st, 4th and 20th turned away are told 1, 2 and 10 seconds; with no drain at all, a minute."""
    admission = Admission(10)
    for _ in range(10):
        told(admission, 0.0)
    assert told(admission, 0.0) == 60
    now = 0.0
    for _ in range(200):
        now += 0.5
        admission.release(FREE, 1.0, 1.0, now)
        told(admission, now)
    after = [told(admission, now) for _ in range(20)]
    assert (after[0], after[3], after[19]) == (1, 2, 10)


def test_a_rate_of_long_ago_is_forgotten():
    """An hour without a completion leaves no rate to promise anything from."""
    admission = Admission(1)
    told(admission, 0.0)
    admission.release(FREE, 1.0, 1.0, 0.1)
    told(admission, 0.2)
    assert told(admission, 3600.0) == 60


def test_a_tenant_over_its_requests_is_turned_away_and_others_are_not():
    """The quota is the tenant's own, and a request that ends makes room in it."""
    admission, tenant = Admission(100), Tenant("small", most_requests=2)
    assert [admission.admit(tenant, 1.0, 0.0) for _ in range(2)] == [None, None]
    turned = admission.admit(tenant, 1.0, 0.0)
    assert turned is not None
    assert turned.outcome is Outcome.TENANT_OVER_QUOTA
    assert "2" in turned.message
    assert told(admission, 0.0) is None
    admission.release(tenant, 1.0, 1.0, 1.0)
    assert admission.admit(tenant, 1.0, 1.0) is None


def test_tokens_of_a_minute_come_back_with_time_and_retry_after_says_when():
    """600 tokens a minute, 500 of them taken: 300 more fit after 20 s, which is what is told, and not a second before."""
    tenant = Tenant("small", tokens_per_minute=600)
    admission = Admission(100)
    assert admission.admit(tenant, 500.0, 0.0) is None
    turned = admission.admit(tenant, 300.0, 0.0)
    assert turned is not None
    assert (turned.outcome, turned.retry_after_s) == (Outcome.TENANT_OVER_QUOTA, 20)
    assert admission.admit(tenant, 300.0, 19.0) is not None
    assert admission.admit(tenant, 300.0, 20.0) is None


def test_a_request_pays_what_it_took_in_the_end():
    """What was charged and not used comes back when the request ends; one that never started pays nothing."""
    tenant, admission = Tenant("small", tokens_per_minute=600), Admission(100)
    for _ in range(20):
        assert admission.admit(tenant, 600.0, 0.0) is None
        admission.release(tenant, 600.0, 0.0, 0.0)
    assert admission.admit(tenant, 600.0, 0.0) is None
    admission.release(tenant, 600.0, 200.0, 0.0)
    assert admission.admit(tenant, 401.0, 0.0) is not None
    assert admission.admit(tenant, 400.0, 0.0) is None


def test_a_request_larger_than_a_minutes_worth_is_served_when_all_of_it_is_there():
    """Otherwise it could never be served."""
    tenant, admission = Tenant("small", tokens_per_minute=600), Admission(100)
    assert admission.admit(tenant, 5_000.0, 0.0) is None
    turned = admission.admit(tenant, 10.0, 0.0)
    assert turned is not None
    assert turned.retry_after_s == 60


@pytest.mark.parametrize("field", ["most_requests", "tokens_per_minute"])
def test_a_quota_below_nothing_is_refused_with_field_value_and_range(field: str):
    """A key file says what is wrong with it."""
    with pytest.raises(ValueError, match=rf"{field} is -1; allowed: 0\.\."):
        Tenant("t", **{field: -1})
