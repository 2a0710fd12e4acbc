"""The walk to the fewest accelerators that reach a goal."""

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


def test_it_walks_up_the_pool_that_is_short_and_down_the_one_that_is_not() -> None:
    """From a guess wrong in both."""
    for guess in ({"p": 1, "d": 1}, {"p": 9, "d": 9}, {"p": 2, "d": 8}, {"p": 6, "d": 1}):
        found = fewest(guess, PAIR, BOUNDS, Goal(ratio=0.97), needs(5, 3))
        assert found.met
        assert found.sizes == {"p": 5, "d": 3}


def test_where_more_would_hardly_help_it_stops() -> None:
    """Prompts that are late on an idle replica: 94 % is all there is."""
    found = fewest({"p": 5, "d": 3}, PAIR, BOUNDS, Goal(ratio=0.97, worth_ratio=0.05), needs(5, 3, best=940))
    assert found.sizes == {"p": 5, "d": 3}
    assert found.useless
    assert not found.met


def test_a_size_in_force_is_left_for_a_small_miss_only() -> None:
    """Within the tolerance it counts as meeting the goal, a step below it does not."""
    goal = Goal(ratio=0.97, here={"p": 5, "d": 3}, tolerance_ratio=0.25)
    assert fewest({"p": 5, "d": 3}, PAIR, BOUNDS, goal, needs(5, 3, best=965)).met
    assert not fewest({"p": 5, "d": 3}, PAIR, BOUNDS, goal, needs(5, 3, best=955)).met


def test_a_budget_ends_the_walk() -> None:
    """Six accelerators for traffic that needs eight."""
    bounds = Bounds(least={"p": 1, "d": 1}, most={"p": 9, "d": 9}, accelerators={"p": 1, "d": 1}, budget=6)
    found = fewest({"p": 1, "d": 1}, PAIR, bounds, Goal(ratio=0.97), needs(5, 3))
    assert sum(found.sizes.values()) <= 6
    assert not found.met


def test_no_trial_gives_the_guess() -> None:
    """Within the bounds."""
    found = fewest({"p": 20, "d": 0}, PAIR, BOUNDS, Goal(ratio=0.97), lambda _sizes: None)
    assert found.sizes == {"p": 9, "d": 1}
    assert found.attainment_ratio is None
