"""Which pools `penstock up --autoscale` may size, and within which bounds: `both=1..4` or `prefill=1..2,decode=1..4`. Pure.

`up_plan` reads it from the command line; `fleet_actuator` keeps to it.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from penstock_autoscaler.loop import LoopTimes
from penstock_autoscaler.settings import ScalerSettings
from penstock_core.endpoint import Role
from penstock_core.errors import PenstockError

MOST_REPLICAS = 64
WINDOW_S = 5.0
WINDOW_RANGE_S = (0.2, 10.0)
_NAMES = frozenset((*ScalerSettings.__struct_fields__, *LoopTimes.__struct_fields__, "window_s"))
_PART_RE = re.compile(r"\s*([a-z]+)\s*=\s*([0-9]{1,3})\s*\.\.\s*([0-9]{1,3})\s*")
_ALLOWED = f"pool=least..most with commas between, pool of {', '.join(Role)}, numbers 0..{MOST_REPLICAS} (both=1..4)"


class Bounds(msgspec.Struct, frozen=True):
    """How many replicas a pool may have."""

    least: int
    most: int


def parse_bounds(written: str) -> dict[str, Bounds]:
    """`"prefill=1..2,decode=1..4"` by pool; empty for an empty text. Raises PenstockError."""
    found: dict[str, Bounds] = {}
    for part in written.split(",") if written.strip() else ():
        matched = _PART_RE.fullmatch(part)
        if matched is None or matched[1] not in list(Role):
            raise PenstockError(f"autoscale is {part.strip()!r}; allowed: {_ALLOWED}")
        least, most = int(matched[2]), int(matched[3])
        if not least <= most <= MOST_REPLICAS or not most:
            raise PenstockError(f"autoscale of {matched[1]} is {least}..{most}; allowed: least up to most, most 1..{MOST_REPLICAS}")
        if matched[1] in found:
            raise PenstockError(f"autoscale names {matched[1]} twice; allowed: once a pool")
        found[matched[1]] = Bounds(least, most)
    return found


class ScalingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set about the autoscaler of a `penstock up`, in one value."""

    scaler: ScalerSettings
    times: LoopTimes
    window_s: float
    """Of the routers' windows."""


def parse_scaling(settings: dict[str, Any]) -> ScalingSettings:
    """`{"period_s": 5}` laid over the defaults: fields of ScalerSettings and LoopTimes, and `window_s`. Raises PenstockError."""
    left = dict(settings)
    for name, value in left.items():
        if name in _NAMES and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise PenstockError(f"autoscale-set: {name} is {value!r}; allowed: a number (docs/configuration.md has the range)")
    window_s = left.pop("window_s", WINDOW_S)
    if not WINDOW_RANGE_S[0] <= window_s <= WINDOW_RANGE_S[1]:
        raise PenstockError(f"autoscale-set: window_s is {window_s!r}; allowed: {WINDOW_RANGE_S[0]:g} to {WINDOW_RANGE_S[1]:g} seconds")
    scaler = _some(left, ScalerSettings.__struct_fields__)
    times = _some(left, LoopTimes.__struct_fields__)
    unknown = left.keys() - scaler.keys() - times.keys()
    if unknown:
        raise PenstockError(f"autoscale-set names {sorted(unknown)[0]!r}; allowed: {', '.join(sorted(_NAMES))}")
    try:
        settled = msgspec.convert(scaler, ScalerSettings)
        return ScalingSettings(
            scaler=settled, times=msgspec.convert({**times, "period_s": settled.period_s}, LoopTimes), window_s=float(window_s)
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise PenstockError(f"autoscale-set: {error}") from None


def _some(settings: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in names}
