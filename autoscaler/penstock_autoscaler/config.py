"""Everything that can be set about an autoscaler process in a cluster: one frozen value, loaded once, each setting with unit and range.

The `autoscaler` command makes it. What a model's owner asks for (targets, bounds, budget, pause) stands in its ModelService instead.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from penstock_process.secrets import REDIS_URL, Unprinted, read_secret
from penstock_process.settings import LOG_LEVELS, ConfigError, check_one_of, check_ranges, load_settings

from penstock_autoscaler.loop import LoopTimes
from penstock_autoscaler.settings import ScalerSettings

_BRAIN = ScalerSettings()


class AutoscalerSecrets(Unprinted, frozen=True):
    """What must never be printed; its repr says only what is set."""

    redis_url: str = ""


class AutoscalerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An autoscaler's settings; RANGES holds what is allowed for each number."""

    watch_namespace: str = ""
    """The one namespace it looks after; empty: all."""
    period_s: float = 15.0
    """Between decisions on a model; no shorter than what routers tell at a time (their `traffic_window_s`)."""
    asleep_s: float = 1.0
    """The same while all pools of the model are at 0: what a first request waits for beside the start itself."""
    look_s: float = 5.0
    """Between looks for ModelServices that have come or gone."""
    sample_s: float = _BRAIN.sample_s
    """Traffic that replays are made of: the latest so many seconds at most."""
    stable_s: float = _BRAIN.stable_s
    """A pool shrinks only after its smaller size would have done for so long."""
    idle_s: float = _BRAIN.idle_s
    """A model that may be scaled to zero is, after so long without a request."""
    margin_ratio: float = _BRAIN.margin_ratio
    """How much more traffic than there is a size must stand that is about to be chosen instead of a larger one."""
    jump_factor: float = _BRAIN.jump_factor
    """Where replicas take more than a minute to start: to so many times its rate traffic may jump at once, and be served."""
    jump_fleet: int = _BRAIN.jump_fleet
    """With at most so many replicas in all, and one more in any fleet for each 200 s that a start takes beyond a minute."""
    what_if: bool = True
    """Replay the latest traffic in the simulator before a decision; false: size by the fluid bound alone."""
    lease_s: float = 10.0
    """How long after the death of one autoscaler another acts on its models."""
    host: str = "0.0.0.0"  # noqa: S104 -- probes and scrapes come from outside the Pod
    """Where probes and metrics listen."""
    port: int = 8080
    """0: any free one."""
    announce_path: str = ""
    """File that gets the URL of probes and metrics; empty: none."""
    kubeconfig: str = ""
    """Empty: the Pod's service account, else $KUBECONFIG or ~/.kube/config."""
    log_level: str = "info"

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        check_one_of("log_level", self.log_level, LOG_LEVELS)

    @property
    def times(self) -> LoopTimes:
        """The waits of each loop."""
        return LoopTimes(period_s=self.period_s, asleep_s=self.asleep_s, lease_s=self.lease_s)

    @property
    def scaler(self) -> ScalerSettings:
        """How cautious it is."""
        return ScalerSettings(
            period_s=self.period_s,
            sample_s=self.sample_s,
            stable_s=self.stable_s,
            idle_s=self.idle_s,
            margin_ratio=self.margin_ratio,
            jump_factor=self.jump_factor,
            jump_fleet=self.jump_fleet,
        )


RANGES: dict[str, tuple[float, float, str]] = {
    "period_s": (0.1, 3_600, "seconds"),
    "asleep_s": (0.1, 3_600, "seconds"),
    "look_s": (0.1, 3_600, "seconds"),
    "sample_s": (1, 86_400, "seconds"),
    "stable_s": (1, 86_400, "seconds"),
    "idle_s": (1, 604_800, "seconds"),
    "margin_ratio": (0, 0.9, "of the demand"),
    "jump_factor": (1, 100, "times the rate"),
    "jump_fleet": (0, 1_000, "replicas"),
    "lease_s": (0.5, 600, "seconds"),
    "port": (0, 65_535, ""),
}
"""What is allowed for each number: lowest, highest, unit."""


def load_config(path: Path | None, settings: Mapping[str, Any]) -> AutoscalerConfig:
    """The file's settings with `settings` (None: not given) laid over. Raises ConfigError."""
    return load_settings(path, settings, AutoscalerConfig)


def load_secrets(environ: Mapping[str, str]) -> AutoscalerSecrets:
    """PENSTOCK_REDIS_URL, or the file that the same name with _FILE names. Raises ConfigError where there is none."""
    found = AutoscalerSecrets(read_secret(environ, REDIS_URL))
    if not found.redis_url:
        raise ConfigError(f"{REDIS_URL} is empty; allowed: the Redis that the routers tell their traffic to, redis://host:port/db")
    return found
