"""Load reports that are late, lost or out of order, and those that tell of what nobody here has placed."""

from penstock_core.endpoint import Load
from penstock_router import columns as col


def test_late_reports_correct_nothing(build):
    """What was true up to five seconds ago is no contradiction, in whichever order it comes, and however often it is told."""
    scheduler = build.scheduler([build.endpoint("a")])
    idle = Load()
    scheduler.report("a", idle, 9.9)
    now = 10.0
    placed = scheduler.place([build.ask(2_000) for _ in range(8)], now)
    waiting = Load(running=1, waiting=7, prefill_tokens=16_000)
    scheduler.report("a", waiting, now)
    for booking in placed:
        booking.first_token(now + 0.5)
    scheduler.report("a", Load(running=8), 10.6)
    for later, load in enumerate((waiting, idle, Load(running=8), waiting, idle, waiting)):
        scheduler.report("a", load, 11.0 + 0.75 * later)
    assert scheduler.conflicts == 0
    assert scheduler.beliefs.rows[scheduler._row_of_id["a"], col.FOREIGN_STREAMS] == 0.0


def test_what_was_never_believed_is_followed_after_a_period(build):
    """Eight streams are booked and the endpoint keeps telling of forty: after a second the others are believed, once."""
    scheduler = build.scheduler([build.endpoint("a")])
    for booking in scheduler.place([build.ask(2_000) for _ in range(8)], 10.0):
        booking.first_token(10.5)
    told_s = []
    for tenth in range(100):
        now = 11.0 + 0.1 * tenth
        before = scheduler.conflicts
        scheduler.report("a", Load(running=40, prefill_tokens=0), now)
        if scheduler.conflicts > before:
            told_s.append(now)
    assert 12.0 <= told_s[0] <= 12.2
    assert len(told_s) == 1
    assert scheduler.beliefs.rows[scheduler._row_of_id["a"], col.FOREIGN_STREAMS] == 32.0


def test_foreign_load_that_goes_is_forgotten(build):
    """Others' streams were there for a while; once they could not be there even in a late report, they are gone."""
    scheduler = build.scheduler([build.endpoint("a")])
    row = scheduler._row_of_id["a"]
    for second in range(4):
        scheduler.report("a", Load(running=30), 10.0 + second)
    assert scheduler.beliefs.rows[row, col.FOREIGN_STREAMS] == 30.0
    for second in range(4):
        scheduler.report("a", Load(), 20.0 + second)
    assert scheduler.beliefs.rows[row, col.FOREIGN_STREAMS] == 0.0


def test_lost_reports_change_nothing_and_a_single_one_neither(build):
    """After a silence one report that contradicts is not enough: the next one decides, a period later."""
    scheduler = build.scheduler([build.endpoint("a")])
    scheduler.report("a", Load(), 10.0)
    scheduler.report("a", Load(running=30), 60.0)
    scheduler.report("a", Load(running=30), 60.5)
    assert scheduler.conflicts == 0
    scheduler.report("a", Load(running=30), 61.1)
    assert scheduler.conflicts == 1
