"""Overload in virtual time: what the production line is worth, and that it is not there while there is room."""

import msgspec
import pytest
from penstock_core.slo import Slo
from penstock_router.admission.claim import Claim, LineLimits
from penstock_simulator.cluster import replay
from penstock_simulator.generate import generate, parse_traffic
from penstock_simulator.report import summarise
from penstock_simulator.setup import Setup, same_workers

SETUP = Setup(workers=same_workers(2), slo=Slo(2.0, 0.025))
WITH = msgspec.structs.replace(SETUP, admission=LineLimits())


def traffic(rate: float):
    return generate(parse_traffic(f"poisson:rate={rate:g},requests={int(120 * rate)},prompt_tokens=6000,output_tokens=200,seed=3"))


def test_with_room_nothing_changes():
    """Every request is served, at the same times as without a line."""
    plain, admitted = (replay(traffic(1.0), setup) for setup in (SETUP, WITH))
    assert (plain.first_s == admitted.first_s).all() and (plain.last_s == admitted.last_s).all()


def test_in_overload_goodput_stays_where_it_collapses_without():
    """At several times what two workers can do: with the line goodput is at least 95 % of the peak without; without, less than half."""
    loads = [traffic(rate) for rate in (2.0, 3.0, 4.0, 5.0, 12.0)]
    good = [one.goodput_ratio * one.rate for one in (summarise(replay(load, SETUP)) for load in loads)]
    over = summarise(replay(loads[-1], WITH))
    assert good[-1] < 0.5 * max(good[:-1])
    assert over.goodput_ratio * over.rate >= 0.95 * max(good)
    assert over.outcomes["shed"] > 0


def test_tenants_share_an_overloaded_fleet_evenly():
    """One tenant sends half of everything, nine others the rest: those nine are all but never shed, the heavy one is."""
    load = traffic(7.0)
    claims = tuple(Claim("heavy" if i % 2 else f"light{i // 2 % 9}") for i in range(load.requests))
    result = replay(load, msgspec.structs.replace(WITH, claims=claims))
    served = {True: 0, False: 0}
    for claim, outcome in zip(claims, result.outcomes, strict=True):
        served[claim.tenant == "heavy"] += outcome == "ok"
    each = load.requests / 2
    assert served[False] / each > 0.9
    assert served[True] / each < served[False] / each


def test_several_routers_with_admission_are_refused():
    """The line is one router's; the setup says so instead of simulating something else."""
    with pytest.raises(ValueError, match="allowed: 1"):
        msgspec.structs.replace(WITH, routers=2)
