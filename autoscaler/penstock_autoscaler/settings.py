"""How cautious the autoscaler is, in seconds and shares. `Scaler` reads it; `penstock` builds it from options.

What a model's owner asks for (targets, bounds, budget) is not here but in the Observation.
"""

import msgspec


class ScalerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one autoscaler, for all its models."""

    period_s: float = 15.0
    """Seconds between decisions; > 0."""
    sample_s: float = 600.0
    """Traffic that replays are made of: the latest so many seconds at most."""
    sample_requests: int = 900
    """The latest so many requests at most."""
    trend_s: float = 900.0
    """How far back rates are looked at for a trend."""
    stable_s: float = 60.0
    """A pool shrinks only after its smaller size would have done for so long."""
    flap_cost: float = 0.5
    """And for at least so many times its start-up time: what giving up a replica and starting it again wastes."""
    last_factor: float = 4.0
    """One replica more than would do stays for so many times as long: that much replays may be wrong, and traffic may rise."""
    quick_last_factor: float = 5.0
    """The same where a start takes `jump_start_s` or less: nothing else keeps the size from following noise there, and each turn costs
    caches. Five minutes cover what recorded traffic took back and forth; three did not."""
    jump_start_s: float = 60.0
    """Where a start takes longer than this, a jump of the rate is insured against: it cannot be waited for."""
    jump_factor: float = 2.5
    """The jump that a fleet is to stand: to so many times the rate expected."""
    jump_fleet: int = 5
    """With at most so many replicas in all; where the jump takes more they stand a part of it, and a fleet that is larger keeps none."""
    jump_spare_s: float = 200.0
    """And one more in any fleet for each so many seconds that a start takes beyond `jump_start_s`: what a jump costs grows with them."""
    jump_memory_s: float = 3_600.0
    """For so long after the last jump that was seen, or after the first traffic of all, another one is insured against."""
    recover_s: float = 60.0
    """Requests that wait are to be served within so long, or within a start-up time where that is longer."""
    worth_factor: float = 3.0
    """A replica must turn a share of what an average one serves from missing its targets to meeting them: so many times the share of
    misses that the goal allows; less while more is missed than that, and the reverse."""
    tolerance_ratio: float = 0.5
    """A size in force is left only for a gain that is larger, or a loss that is smaller, by this share than a replica must be worth."""
    margin_ratio: float = 0.05
    """How much more traffic than there is a size must stand that is about to be chosen instead of a larger one."""
    idle_s: float = 600.0
    """A pool whose least size is 0 is emptied after so long without a request."""
    late_factor: float = 3.0
    """A replica that has been starting for so many times its expected start-up time is not counted on."""
    budget_half_life_s: float = 1_800.0
    """How long misses of the past weigh on the goal."""
    replay_budget_s: float = 1.0
    """CPU seconds that the replays of one decision may take."""
    replay_fresh_s: float = 75.0
    """How long what a replay said is used again."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not (0.0 if name in _MAY_BE_ZERO else 1e-6) <= getattr(self, name) < 1e7:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {least_words(name)}")


_MAY_BE_ZERO = frozenset(
    (
        *(name for name in ScalerSettings.__struct_fields__ if name.endswith("_ratio")),
        "flap_cost",
        "replay_budget_s",
        "replay_fresh_s",
        "jump_start_s",
        "jump_fleet",
    )
)


def least_words(name: str) -> str:
    """What is allowed for a setting, in words."""
    return "0 or more" if name in _MAY_BE_ZERO else "more than 0"
