"""The walk to the size at which one replica more is no longer worth it."""

from penstock_autoscaler.observation import Pool
from penstock_autoscaler.search import Bounds, Goal, Trial, fewest
from penstock_core.endpoint import Role
from penstock_core.profile import DEFAULT_PROFILE
from penstock_core.slo import Attainment


def pool(name: str, role: Role) -> Pool:
    return Pool(name=name, role=role, desired=1, min_replicas=1, max_replicas=9, profile=DEFAULT_PROFILE, start_s=60.0)


PAIR = (pool("p", Role.PREFILL), pool("d", Role.DECODE))
BOUNDS = Bounds(least={"p": 1, "d": 1}, most={"p": 9, "d": 9}, accelerators={"p": 1, "d": 1})


def needs(p: int, d: int, best: int = 1_000) -> Trial:
    """Traffic that meets its targets with so many of each; `best` of 1,000 at most."""

    def trial(sizes: dict[str, int]) -> Attainment:
        ttft, itl = min(best, 1_000 * sizes["p"] // p), min(best, 1_000 * sizes["d"] // d)
        return Attainment(1_000, ttft, itl, min(ttft, itl))

    return trial


GOAL = Goal(worth_ratio=0.1)


def test_it_walks_up_the_pool_that_is_short_and_down_the_one_that_is_not() -> None:
    """From a guess wrong in both."""
    for guess in ({"p": 1, "d": 1}, {"p": 9, "d": 9}, {"p": 2, "d": 8}, {"p": 6, "d": 1}):
        found = fewest(guess, PAIR, BOUNDS, GOAL, needs(5, 3))
        assert found.met
        assert found.sizes == {"p": 5, "d": 3}


def test_where_more_would_hardly_help_it_stops() -> None:
    """Prompts that are late on an idle replica: 85 % is all there is, and nothing else is wanted."""
    found = fewest({"p": 5, "d": 3}, PAIR, BOUNDS, GOAL, needs(5, 3, best=850))
    assert found.sizes == {"p": 5, "d": 3}
    assert found.met


def served(*by_size: int) -> Trial:
    """One pool: of 1,000 requests so many meet their targets with 1, 2, ... replicas."""
    return lambda sizes: Attainment(1_000, by_size[sizes["b"] - 1], 1_000, by_size[sizes["b"] - 1])


BOTH = (pool("b", Role.BOTH),)
NINE = Bounds(least={"b": 1}, most={"b": 9}, accelerators={"b": 1})
SLOW = served(400, 700, 900, 950, 970, 978, 980, 980, 980)
"""The fifth replica turns 20 of 1,000 requests, a tenth of what each of five serves; the sixth 8, a twentieth."""


def test_a_replica_must_turn_its_share_of_what_an_average_one_serves() -> None:
    """Whatever the attainment is that it leads to: the same price everywhere."""
    for guess in range(1, 10):
        assert fewest({"b": guess}, BOTH, NINE, Goal(worth_ratio=0.07), SLOW).sizes == {"b": 5}
        assert fewest({"b": guess}, BOTH, NINE, Goal(worth_ratio=0.12), SLOW).sizes == {"b": 4}


def test_far_from_the_goal_a_step_that_does_not_help_alone_is_taken() -> None:
    """Where nobody is served in time, two more may be what it takes."""
    cliff = served(0, 0, 0, 0, 400, 1_000, 1_000, 1_000, 1_000)
    assert fewest({"b": 2}, BOTH, NINE, GOAL, cliff).sizes == {"b": 6}


def test_a_size_in_force_is_left_for_a_clear_gain_or_none_lost_only() -> None:
    """Steps that are worth a little more, or a little less, than they must be change nothing."""
    for here in (4, 5):
        goal = Goal(worth_ratio=0.08, here={"b": here}, tolerance_ratio=0.5)
        assert fewest({"b": here}, BOTH, NINE, goal, SLOW).sizes == {"b": here}


def test_a_budget_ends_the_walk() -> None:
    """Six accelerators for traffic that needs eight."""
    bounds = Bounds(least={"p": 1, "d": 1}, most={"p": 9, "d": 9}, accelerators={"p": 1, "d": 1}, budget=6)
    found = fewest({"p": 1, "d": 1}, PAIR, bounds, GOAL, needs(5, 3))
    assert sum(found.sizes.values()) <= 6
    assert not found.met


def test_no_trial_gives_the_guess() -> None:
    """Within the bounds."""
    found = fewest({"p": 20, "d": 0}, PAIR, BOUNDS, GOAL, lambda _sizes: None)
    assert found.sizes == {"p": 9, "d": 1}
    assert found.attainment_ratio is None
