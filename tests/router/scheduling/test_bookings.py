"""Whatever happens to requests and endpoints, everything booked is given back; and what bookings teach."""

from random import Random
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock_core.endpoint import Endpoint, Load, Role
from penstock_core.slo import Slo
from penstock_router import columns as col
from penstock_router.policies import POLICIES
from penstock_router.residuals import TtftResiduals

pytestmark = pytest.mark.usefixtures("each_kernel")

ACTIONS = ("prefilled", "prefill_failed", "bind", "first_token", "answered", "token", "facts", "done")


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_nothing_is_left_booked(build, policy, data):
    """Any order of events on any fleet that changes meanwhile: when all are done, every count of every row is zero."""
    pool = [build.endpoint(f"w{i}", role, slot=i) for i, role in enumerate([*Role, *Role])]
    changing = st.lists(st.sampled_from(range(len(pool))), min_size=1, unique=True)
    scheduler = build.scheduler([pool[i] for i in data.draw(changing)], policy)
    now, bookings = 1.0, []
    for _ in range(data.draw(st.integers(1, 25))):
        now += data.draw(st.floats(0.0, 0.5))
        step = data.draw(st.sampled_from(["place", "place", "act", "act", "act", "act", "fleet", "report"]))
        if step == "place":
            asks = [
                build.ask(data.draw(st.integers(1, 5_000)), undivided=data.draw(st.booleans()))
                for _ in range(data.draw(st.integers(1, 12)))
            ]
            bookings += [one for one in scheduler.place(asks, now) if one is not None]
        elif step == "fleet":
            endpoints = [pool[i] for i in data.draw(changing)]
            epoch = data.draw(st.integers(1, 2))
            scheduler.set_endpoints([build.endpoint(one.id, one.record.role, slot=one.slot, epoch=epoch) for one in endpoints], now)
        elif step == "report":
            load = Load(data.draw(st.integers(0, 9)), 0, data.draw(st.integers(0, 20_000)), data.draw(st.integers(0, 90_000)), 100_000)
            scheduler.report(data.draw(st.sampled_from(pool)).id, load, now)
        elif bookings:
            booking = data.draw(st.sampled_from(bookings))
            act(booking, data.draw(st.sampled_from(ACTIONS)), now)
    for booking in bookings:
        booking.done(now + 1.0)
        booking.done(now + 2.0, 5)
        for action in ACTIONS:
            act(booking, action, now + 3.0)
    assert set(build.counts(scheduler).values()) == {0.0}
    scheduler.set_endpoints([], now + 4.0)
    assert len(scheduler.beliefs._free) == len(scheduler.beliefs.rows)


def act(booking, action, now):
    if action == "bind":
        booking.bind_decode(now)
    elif action == "facts":
        booking.facts(100, 777, now)
    else:
        getattr(booking, action)(now)


def test_many_endpoints_and_many_streams_grow_the_arrays(build):
    """100 endpoints and 60 streams on one of them: stamps go to the right stream after growing and after others have left."""
    endpoints = [build.endpoint(f"w{i}", slot=i) for i in range(100)]
    scheduler = build.scheduler(endpoints[:3])
    others = frozenset(one.id for one in endpoints[1:])
    bookings = [scheduler.place([build.ask(10, excluded=others)], 0.0)[0] for _ in range(60)]
    for number, booking in enumerate(bookings):
        booking.first_token(1.0 + number)
    scheduler.set_endpoints(endpoints, 61.0)
    for number, booking in enumerate(bookings):
        for _ in range(number):
            booking.token(100.0 + number)
    for booking in bookings[::2]:
        booking.done(200.0)
    for number, booking in list(enumerate(bookings))[1::2]:
        first, last, tokens = scheduler.beliefs.cells[booking.cell : booking.cell + 3]
        assert (first, last, tokens) == (1.0 + number, 100.0 + number, 1.0 + number)
    assert scheduler.beliefs.rows[0, col.CELLS_USED] == 30
    assert scheduler.beliefs.rows[0, col.CONTEXT] == sum(10 + 1 + number for number in range(1, 60, 2))


def test_the_stream_that_makes_the_cells_grow_is_written_into_the_new_ones(build):
    """Streams bound after a prefill elsewhere have had no cell: each has one token in it, whichever made the row grow."""
    scheduler = build.scheduler([build.endpoint("a")])
    owners = [SimpleNamespace(cell=-1) for _ in range(60)]
    for owner in owners:
        scheduler.beliefs.open_cell(0, owner, 1.0, 0.05, 100.0, 0)
    assert [scheduler.beliefs.cells[owner.cell + col.TOKENS] for owner in owners] == [1.0] * 60


def test_a_new_epoch_is_another_worker(build):
    """The restarted worker starts empty; the old booking still ends without touching it."""
    scheduler = build.scheduler([build.endpoint("a", epoch=1)])
    old = scheduler.place([build.ask(5_000)], 0.0)[0]
    scheduler.set_endpoints([build.endpoint("a", epoch=2)], 0.1)
    assert scheduler.place([build.ask(500)], 0.1)[0].placement.ttft_s == pytest.approx(0.060)
    old.done(0.2)
    assert build.counts(scheduler)["BOOKED"] == 500
    same = scheduler.beliefs.rows[:, col.BOOKED].sum()
    scheduler.set_endpoints([build.endpoint("a", epoch=2, slot=4)], 0.3)
    assert scheduler.beliefs.rows[:, col.BOOKED].sum() == same


def test_facts_replace_the_estimated_prompt(build):
    """The engine counted 700 tokens, not 500: context and KV follow, and nothing is left at the end."""
    scheduler = build.scheduler([build.endpoint("a")])
    booking = scheduler.place([build.ask(500, max_tokens=10)], 0.0)[0]
    booking.first_token(0.06)
    booking.facts(0, 700, 0.06)
    assert scheduler.beliefs.rows[0, col.CONTEXT] == 701
    assert scheduler.beliefs.rows[0, col.KV_BOOKED] == 710
    booking.done(0.1, 1)
    assert set(build.counts(scheduler).values()) == {0.0}


def test_ttft_residuals_are_learned_from_whole_and_divided_requests(build):
    """Every prediction of 100 ms is 20 ms short: the deviation of such a prediction comes to be 20 ms."""
    for endpoints in ([build.endpoint("a")], [build.endpoint("p", Role.PREFILL), build.endpoint("d", Role.DECODE)]):
        scheduler = build.scheduler(endpoints, fitted=False)  # else the predictions become right
        for turn in range(400):
            now = 10.0 * turn
            booking = scheduler.place([build.ask(900)], now)[0]
            booking.prefilled(now + 0.120)  # predicted: 100 ms; nothing for a request without a prefill leg
            booking.first_token(now + 0.120)
            booking.done(now + 0.2, 5)
        assert scheduler.profiles.residuals.deviation_s(0.1) == pytest.approx(0.02, rel=0.01)


def test_answers_in_one_piece_teach_no_ttft(build):
    """When their first token was there nobody has seen: neither the residuals nor the pass watch learn of it, whole or divided."""
    for endpoints in ([build.endpoint("a")], [build.endpoint("p", Role.PREFILL), build.endpoint("d", Role.DECODE)]):
        scheduler = build.scheduler(endpoints)
        before = scheduler.profiles.residuals.deviation_s(0.1)
        for turn in range(100):
            now = 10.0 * turn
            booking = scheduler.place([build.ask(900)], now)[0]
            if booking.placement.decode is None:
                booking.bind_decode(now)
            booking.answered(now + 5.0)
            booking.done(now + 5.0, 5)
        assert scheduler.profiles.residuals.deviation_s(0.1) == before
        assert not any(one.seen for one in scheduler.profiles._classes.values())
        assert set(build.counts(scheduler).values()) == {0.0}


def test_errors_that_grow_with_the_prediction_are_told_from_those_that_do_not():
    """5 ms on whatever is predicted, and 20 % of it: short predictions teach the one, long ones the other."""
    rng, residuals = Random(3), TtftResiduals()
    for _ in range(6_000):
        predicted_s = rng.choice((0.01, 0.02, 1.0, 2.0))
        residuals.observe(predicted_s, predicted_s + rng.gauss(0.0, 0.005) + rng.gauss(0.0, 0.2 * predicted_s))
    assert residuals.slip_s == pytest.approx(0.005, rel=0.25)
    assert residuals.sigma == pytest.approx(0.2, rel=0.25)


def test_a_deviation_that_too_many_errors_exceed_is_widened_and_narrowed_again():
    """A fifth of the predictions is off by ten times as much as the rest: nine in ten errors come to lie where a normal tenth would end."""
    rng, residuals = Random(5), TtftResiduals()
    beyond = 0
    for turn in range(6_000):
        error_s = (0.2 if rng.random() < 0.2 else 0.0) + rng.gauss(0.0, 0.002)
        beyond += turn >= 1_000 and abs(error_s) > 1.645 * residuals.deviation_s(0.5)
        residuals.observe(0.5, 0.5 + error_s)
    assert residuals.widened > 1.1
    assert beyond / 5_000 < 0.15
    for _ in range(2_000):
        residuals.observe(0.5, 0.5 + rng.gauss(0.0, 0.02))
    assert residuals.widened < 1.1


def test_classes_of_endpoints_have_deviations_of_their_own_once_they_have_errors_enough(build):
    """Pool `wild` is off by 60 ms where pool `pool` is not: at 200 errors each goes by its own, before that by the model's."""
    wild = msgspec.structs.replace(build.endpoint("w").record, pool="wild")
    scheduler = build.scheduler([build.endpoint("a"), Endpoint(wild)], fitted=False)
    rows = {name: scheduler._row_of_id[name] for name in ("a", "w")}

    def feed(turns, begin_s):
        for turn in range(turns):
            off_s = 0.06 if turn % 4 < 2 else -0.06
            scheduler.profiles.check_ttft(rows["a"], 0.1, 0.1)
            scheduler.profiles.check_ttft(rows["w"], 0.1, 0.1 + off_s)
        scheduler.rest(begin_s + 1.0)
        return {name: float(scheduler.beliefs.rows[row, col.SLIP_S]) for name, row in rows.items()}

    first = feed(150, 0.0)
    assert first["a"] == first["w"] == pytest.approx(scheduler.profiles.residuals.slip_s) != 0.02
    assert not any(state.ttft.own for state in scheduler.profiles.states())
    later = feed(250, 10.0)
    assert later["w"] > 5 * later["a"]
    assert all(state.ttft.own for state in scheduler.profiles.states())
    scheduler.set_endpoints([build.endpoint("a"), Endpoint(wild), build.endpoint("b")], 12.0)
    assert scheduler.beliefs.rows[scheduler._row_of_id["b"], col.SLIP_S] == later["a"], "a new endpoint goes by what its class has learned"


def test_one_lost_request_does_not_rule_the_deviation():
    """A minute that somebody waited moves the deviation by less than a tenth."""
    residuals = TtftResiduals()
    before_s = residuals.deviation_s(0.5)
    residuals.observe(0.5, 60.0)
    assert before_s < residuals.deviation_s(0.5) < 1.1 * before_s


def test_itl_misses_lately_are_remembered_where_they_happened(build):
    """Streams over their ITL target raise the endpoint's ratio, others bring it down."""
    scheduler = build.scheduler([build.endpoint("a")])
    for gap_s, risen in ((0.2, True), (0.01, False)):
        before = scheduler.beliefs.rows[0, col.MISS_RATIO]
        booking = scheduler.place([build.ask(slo=Slo(itl_s=0.05))], 0.0)[0]
        booking.first_token(1.0)
        booking.token(1.0 + gap_s)
        booking.done(2.0, 2)
        assert bool(scheduler.beliefs.rows[0, col.MISS_RATIO] > before) is risen


def test_reports_correct_beliefs_only_after_a_report_period(build):
    """The worker has 3,000 foreign tokens and five foreign requests: believed a second after the first report that says so."""
    scheduler = build.scheduler([build.endpoint("a")])
    load = Load(running=3, waiting=2, prefill_tokens=3_000, kv_used_tokens=9_000, kv_total_tokens=100_000)
    scheduler.report("a", load, 10.0)
    assert scheduler.conflicts == 0
    assert scheduler.place([build.ask(100)], 10.0)[0].placement.ttft_s == pytest.approx(0.020)
    scheduler.report("a", load, 10.9)
    assert scheduler.conflicts == 0
    scheduler.report("a", load, 11.0)
    assert scheduler.conflicts == 1
    # 3,000 foreign and 100 of ours, five foreign streams: passes of 995, 995, 995 and what is left of 115, a step of 25 ms each.
    seconds = 3 * (0.010 + 0.0995 + 0.025) + 0.010 + 0.0115 + 0.025
    predicted = scheduler.place([build.ask(100)], 11.0)[0].placement.ttft_s
    assert predicted == pytest.approx(seconds, rel=0.05)
    scheduler.report("nobody", load, 12.0)


def test_a_report_that_agrees_changes_nothing(build):
    """Small differences are the normal delay between a placement and the report."""
    scheduler = build.scheduler([build.endpoint("a")])
    scheduler.place([build.ask(500_000)], 0.0)
    before = scheduler.beliefs.rows[0, col.BOOKED : col.STREAMS].copy()
    for second in range(5):
        scheduler.report("a", Load(running=1, prefill_tokens=420_000), 0.5 * second)
    assert scheduler.conflicts == 0
    assert scheduler.beliefs.rows[0, col.BOOKED] == before[0]
    assert scheduler.beliefs.rows[0, col.COMPUTED] == 18_000  # 2 s in passes of 110 ms


def test_a_report_frees_a_worker_that_is_further_than_believed(build):
    """20,000 tokens booked, the worker reports none left for longer than a period: the next prompt waits for nothing."""
    scheduler = build.scheduler([build.endpoint("a")])
    booking = scheduler.place([build.ask(20_000)], 0.0)[0]
    for now in (0.1, 1.2):
        scheduler.report("a", Load(running=1), now)
    assert scheduler.conflicts == 1
    assert scheduler.place([build.ask(500)], 1.2)[0].placement.ttft_s == pytest.approx(0.060)
    booking.done(1.3)


def test_a_whole_answer_is_through_without_ever_being_a_stream(build):
    """Answered at once: nothing of it waits any more, none of it is a stream, and its length is learned in the end."""
    scheduler = build.scheduler([build.endpoint("w")])
    booking = scheduler.place([build.ask(1_000)], 0.0)[0]
    assert build.counts(scheduler)["BOOKED"] == 1_000.0
    booking.answered(0.1)
    booking.answered(0.2)
    assert build.counts(scheduler) | {"RUNNING": 0.0, "KV_BOOKED": 0.0} == dict.fromkeys(build.counts(scheduler), 0.0)
    booking.done(0.3, 64)
    assert set(build.counts(scheduler).values()) == {0.0}
    assert scheduler.lengths.model._unlearned == [64]
