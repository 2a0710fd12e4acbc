"""What the router sees of engines' passes: prompts alone, shared, in chunks, beside streams; and what it leaves alone."""

import pytest
from penstock_core.endpoint import Load, Role
from penstock_core.profile_fit import Passes

# ROUND: a pass of n new tokens lasts 10 ms + 0.1 ms a token, a step of b streams 20 + b ms, 1,000 tokens a pass.


@pytest.fixture
def seen(build):
    """(scheduler with endpoint a, what its watch hands on)."""
    scheduler = build.scheduler([build.endpoint("a")])
    found: list[Passes] = []
    scheduler.passes._take = lambda _r, passes: found.append(passes)
    return scheduler, found


def place(build, scheduler, tokens, now):
    booking = scheduler.place([build.ask(tokens)], now)[0]
    assert booking is not None
    return booking


def test_a_prompt_alone_on_an_idle_endpoint_is_one_pass(build, seen):
    """From placing to the first token."""
    scheduler, found = seen
    place(build, scheduler, 300, 1.0).first_token(1.040)
    assert found == [Passes(((300.0, 0.0),), 0, 0.0, 0.0, pytest.approx(0.040))]


def test_prompts_that_waited_share_the_next_pass(build, seen):
    """It begins with the first token of the pass before, and all their first tokens come at its end."""
    scheduler, found = seen
    one = place(build, scheduler, 300, 1.0)
    two, three = place(build, scheduler, 200, 1.010), place(build, scheduler, 400, 1.020)
    one.first_token(1.040)
    two.first_token(1.1312)
    three.first_token(1.1313)
    assert [sum(new for new, _ in passes.prefills) for passes in found] == [300.0, 600.0]
    assert found[1].seconds == pytest.approx(0.0912)
    assert len(found[1].prefills) == 1
    assert (found[1].steps, found[1].streams) == (1, 1.0)  # the first prompt streams by then


def test_a_long_prompt_is_measured_over_all_its_passes(build, seen):
    """2,300 tokens are passes of 1,000, 1,000 and 300, the later ones attending to the earlier."""
    scheduler, found = seen
    place(build, scheduler, 2_300, 1.0).first_token(1.260)
    assert [new for new, _ in found[0].prefills] == [1_000.0, 1_000.0, 300.0]
    assert [pairs for _, pairs in found[0].prefills] == [0.0, 1_000_000.0, 600_000.0]
    assert found[0].seconds == pytest.approx(0.260)


def test_a_prompt_begun_in_the_last_pass_counts_with_its_rest(build, seen):
    """600 and 900 tokens waiting: 600 + 400 in one pass, the other 500 in the next."""
    scheduler, found = seen
    zero = place(build, scheduler, 100, 1.0)
    one, two = place(build, scheduler, 600, 1.006), place(build, scheduler, 900, 1.007)
    zero.first_token(1.020)
    one.first_token(1.150)
    two.first_token(1.250)
    assert [passes.prefills[0][0] for passes in found] == [100.0, 999.0, 501.0]  # one token of the budget decodes
    assert found[2].prefills[0][1] == 501.0 * 399.0


def test_beside_streams_a_pass_begins_with_the_step_after_the_newest_token(build, seen):
    """The endpoint's steps have been timed: 21 ms; a prompt placed 5 ms after a token begins 16 ms later."""
    scheduler, found = seen
    stream = place(build, scheduler, 100, 1.0)
    stream.first_token(1.020)
    for step in range(1, 11):
        stream.token(1.020 + 0.021 * step)
    newest = 1.020 + 0.210
    prompt = place(build, scheduler, 500, newest + 0.005)
    assert found[1] == Passes((), 10, 1.0, pytest.approx(101 + 5.0), pytest.approx(0.210))
    prompt.first_token(newest + 0.021 + 0.060 + 0.021)
    assert found[2].prefills == ((500.0, 0.0),)
    assert found[2].seconds == pytest.approx(0.081)
    assert (found[2].steps, found[2].streams, found[2].context_tokens) == (1, 1.0, 111.0)


def test_hits_are_what_the_worker_counted(build, seen):
    """Its own count comes before the first token and replaces the guess."""
    scheduler, found = seen
    booking = place(build, scheduler, 800, 1.0)
    booking.facts(500, 810, 1.03)
    booking.first_token(1.041)
    assert found[0].prefills == ((310.0, 310.0 * 500.0),)


def test_what_cannot_be_told_apart_is_not_measured(build, seen):
    """Prompts placed about when a pass began, prompts of others, prompts given up, and whole answers teach nothing."""
    scheduler, found = seen
    one, two = place(build, scheduler, 300, 1.0), place(build, scheduler, 300, 1.001)
    one.first_token(1.05)
    assert not found  # the second may be in that pass or in the next one
    two.first_token(1.09)
    one.done(1.2)
    two.done(1.2)
    three, four = place(build, scheduler, 300, 2.0), place(build, scheduler, 300, 2.02)
    three.done(2.03)
    four.first_token(2.08)
    four.done(2.3)
    place(build, scheduler, 300, 3.0).answered(3.9)
    assert not found
    for second in range(4):
        scheduler.report("a", Load(running=30, waiting=30, prefill_tokens=20_000), 10.0 + second)
    place(build, scheduler, 300, 14.0).first_token(14.5)
    assert not found


def test_steps_are_timed_while_the_batch_stays_the_same(build, seen):
    """Two streams: from the second first token to the end of one, with the context of the middle."""
    scheduler, found = seen
    one, two = place(build, scheduler, 100, 1.0), place(build, scheduler, 200, 1.5)
    one.first_token(1.5)
    two.first_token(1.6)
    found.clear()
    for step in range(1, 9):
        one.token(1.6 + 0.022 * step)
        two.token(1.6 + 0.022 * step)
    one.done(1.6 + 0.022 * 8)
    assert found == [Passes((), 8, 2.0, pytest.approx(100 + 200 + 2 + 8), pytest.approx(0.176))]


def test_prefill_legs_are_measured_where_they_run(build):
    """A dedicated prefill endpoint: from placing to the answer of the leg."""
    scheduler = build.scheduler([build.endpoint("p", Role.PREFILL), build.endpoint("d", Role.DECODE)])
    found = []
    scheduler.passes._take = lambda r, passes: found.append((r, passes))
    booking = place(build, scheduler, 400, 1.0)
    booking.prefilled(1.05)
    assert found == [(scheduler._row_of_id["p"], Passes(((400.0, 0.0),), 0, 0.0, 0.0, pytest.approx(0.05)))]


def test_rows_follow_the_fit_and_go_back_when_it_is_not_trusted(build):
    """Endpoints of a class get the coefficients in force, late comers too; wild measurements bring the declared ones back."""
    scheduler = build.scheduler([build.endpoint("a"), build.endpoint("b")])
    profiles, row, rows = scheduler.profiles, scheduler._row_of_id["a"], scheduler.beliefs.rows
    assert profiles.told() == ()
    declared = build.ROUND.coefficients()

    def feed(batches, factor, begin):
        for number in range(batches):
            for i in range(32):
                tokens = 50.0 + 29.0 * i
                swing = factor if isinstance(factor, float) else factor[i % 2]
                profiles.take(row, Passes(((tokens, 0.0),), 0, 0.0, 0.0, swing * (0.010 + 0.0001 * tokens)))
            profiles.learn(begin + number, True)

    def seconds(coefficients):
        return coefficients[0] + (coefficients[1] + coefficients[2] * 500.0) * 500.0

    feed(12, 2.0, 1.0)
    assert seconds(rows[row]) == pytest.approx(2 * seconds(declared), rel=0.02)
    scheduler.set_endpoints([build.endpoint("a"), build.endpoint("c")], 20.0)
    assert rows[scheduler._row_of_id["c"], 1] == rows[row, 1]
    (state,) = profiles.states()
    assert (state.endpoints, state.prefill.in_force, state.decode.in_force) == (2, True, False)
    (told,) = profiles.told()
    assert (told.pool, told.declared, told.decode_ratio) == (state.pool, state.profile, 1.0)
    assert told.prefill_ratio == pytest.approx(2.0, rel=0.05)
    assert seconds(told.row) == seconds(rows[row])
    feed(20, (0.5, 4.0), 30.0)
    assert rows[row, 1] == declared[1]
    (told,) = profiles.told()
    assert (told.row, told.prefill_ratio) == ((), 1.0)
    feed(40, 2.0, 60.0)
    assert seconds(rows[row]) == pytest.approx(2 * seconds(declared), rel=0.05)
