"""Output lengths per class: learned, followed only while they predict better, and the model's otherwise."""

from random import Random

import pytest
from penstock_router import columns as col
from penstock_router.length_classes import LEAST_ANSWERS, MOST_CLASSES, LengthClasses, class_of
from penstock_router.lengths import PRIOR_MEAN_TOKENS, OutputLengths


def lognormal(rng, mean):
    return max(1, round(mean * rng.lognormvariate(-0.08, 0.4)))


def test_a_class_is_followed_once_it_predicts_better_and_not_before():
    """Answers to tool calls are 40 tokens, others 600: each class gets its own table after enough answers."""
    rng, lengths = Random(1), LengthClasses()
    tools, plain = class_of("chat", "", True, None, 900), class_of("chat", "", False, None, 900)
    for _ in range(LEAST_ANSWERS - 1):
        lengths.observe(tools, lognormal(rng, 40))
        lengths.observe(plain, lognormal(rng, 600))
    assert lengths.follows(tools) == lengths.follows(plain) == col.EVERYTHING
    for _ in range(100):
        lengths.observe(tools, lognormal(rng, 40))
        lengths.observe(plain, lognormal(rng, 600))
    assert lengths.follows(tools) != lengths.follows(plain)
    assert col.EVERYTHING not in (lengths.follows(tools), lengths.follows(plain))
    assert lengths.expected_tokens(tools, None) < 80
    assert lengths.expected_tokens(plain, None) > 400
    assert lengths.expected_tokens(plain, 100) <= 100
    assert lengths.follows(class_of("chat", "", False, 16, 900)) == col.EVERYTHING


def test_classes_without_lengths_of_their_own_follow_the_model():
    """Where the class says nothing about the length, no class table is followed for more than a moment."""
    rng, lengths = Random(2), LengthClasses()
    kinds = [class_of("chat", "", False, None, 100 << k) for k in range(4)]
    followed = 0
    for _ in range(2_000):
        for kind in kinds:
            lengths.observe(kind, lognormal(rng, 300))
        followed += sum(lengths.follows(kind) != col.EVERYTHING for kind in kinds)
    assert followed <= 0.05 * 8_000


def test_a_class_that_turns_is_left_and_taken_up_again():
    """A class whose answers change falls back to the model's table, and is followed again when it has learned anew."""
    rng, lengths = Random(3), LengthClasses()
    one, other = "one", "other"
    for _ in range(400):
        lengths.observe(one, lognormal(rng, 30))
        lengths.observe(other, lognormal(rng, 500))
    assert lengths.follows(one) != col.EVERYTHING
    states = []
    for _ in range(600):
        lengths.observe(one, lognormal(rng, 3_000))
        lengths.observe(other, lognormal(rng, 500))
        states.append(lengths.follows(one) != col.EVERYTHING)
    assert not all(states[:100])
    assert states[-1]
    assert lengths.expected_tokens(one, None) > 1_500


def test_more_kinds_than_tables_leave_the_rest_with_the_model():
    """Names chosen by clients cannot make the tables grow; one that had its chance gives up its table for another."""
    rng, lengths = Random(4), LengthClasses()
    for number in range(5 * MOST_CLASSES):
        lengths.observe(f"kind {number}", 10)
    assert len(lengths.states()) == MOST_CLASSES
    for _ in range(6):
        for number in range(MOST_CLASSES):  # these have their chance: lengths like everybody's
            for _ in range(LEAST_ANSWERS // 4):
                lengths.observe(f"kind {number}", lognormal(rng, 200))
    for _ in range(300):
        lengths.observe("late", lognormal(rng, 4))
        lengths.observe("kind 1", lognormal(rng, 200))
    assert lengths.follows("late") != col.EVERYTHING
    assert len(lengths.states()) == MOST_CLASSES


def test_lengths_fall_back_to_the_declared_ones_when_the_newest_answers_contradict_them():
    """After 2,000 answers of 500 tokens, 130 of 20 are enough: what is older is forgotten, and F is learned anew."""
    rng, lengths = Random(5), OutputLengths()
    assert lengths.expected_tokens() == pytest.approx(PRIOR_MEAN_TOKENS, abs=1)
    for _ in range(2_000):
        lengths.observe(lognormal(rng, 500))
    assert lengths.forgotten <= 1  # the declared ones were not right either
    before = lengths.forgotten
    assert lengths.expected_tokens() > 450
    for _ in range(260):
        lengths.observe(lognormal(rng, 20))
    assert lengths.forgotten == before + 1
    assert lengths.weight < 300
    assert lengths.expected_tokens() < 60
    for _ in range(2_000):
        lengths.observe(lognormal(rng, 20))
    assert lengths.forgotten == before + 1
    assert lengths.weight > 1_500
    assert lengths.expected_tokens() < 25


def test_a_length_that_everybody_has_is_no_misfit():
    """Benchmarks ask for exactly so many tokens: nothing is forgotten over it."""
    lengths = OutputLengths()
    for _ in range(3_000):
        lengths.observe(128)
    assert lengths.forgotten <= 1
    assert lengths.expected_tokens() == pytest.approx(128, abs=3)


def test_a_known_length_is_exact(build):
    """A stream whose length is known is missed for certain or not at all."""
    scheduler = build.scheduler([build.endpoint("a")])
    slo = build.ask().slo.__class__(ttft_s=1.0, itl_s=0.032)
    terms = []
    for output in (10, 40):
        booking = scheduler.place([build.ask(100, slo=slo, output_tokens=output)], 0.0)[0]
        booking.first_token(1.0)
        for step in range(1, 9):
            booking.token(1.0 + 0.022 * step)
        placed = scheduler.place([build.ask(1_190, slo=slo, explain=True)], 1.0 + 0.022 * 8)[0]
        terms.append(placed.placement.candidates[0].terms["others_miss"])
        placed.done(2.0)
        booking.done(2.0)
    # At 10 ms of room a stall of 181 ms needs 19 tokens: the one of 10 will miss, the one of 40 will not.
    assert terms == [1.0, 0.0]
