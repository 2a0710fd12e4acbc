"""How cautious the autoscaler is, in seconds and shares. `Scaler` reads it; `penstock` builds it from options.

What a model's owner asks for (targets, bounds, budget) is not here but in the Observation.
"""

import msgspec


class ScalerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one autoscaler, for all its models."""

    period_s: float = 15.0
    """Seconds between decisions; > 0."""
    sample_s: float = 240.0
    """Traffic that demand is computed from: the latest so many seconds."""
    stable_s: float = 120.0
    """A pool shrinks only after its smaller size would have done for so long."""
    history_s: float = 7_200.0
    """How far back rates are kept for trends."""
    margin_ratio: float = 0.1
    """Room beside the forecast that a size has which is about to be given up."""
    late_factor: float = 3.0
    """A replica that has been starting for so many times its expected start-up time is not counted on."""

    def __post_init__(self) -> None:
        for name in ("period_s", "sample_s", "stable_s", "history_s", "late_factor"):
            if not 0.0 < getattr(self, name) < 1e7:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: more than 0")
        if not 0.0 <= self.margin_ratio < 1.0:
            raise ValueError(f"margin_ratio is {self.margin_ratio!r}; allowed: 0 to 1")
