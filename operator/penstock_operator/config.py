"""Everything that can be set about an operator: one frozen value per process, loaded once, each setting with unit and range.

The `operator` command makes it; the planner reads what it needs to render, the shell the rest. Secrets are kept apart and never
printed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from penstock_process.secrets import CHUNK_SECRET, FLEET_TOKEN, REDIS_URL, Unprinted, parse_chunk_secret, read_secret
from penstock_process.settings import LOG_LEVELS, ConfigError, check_one_of, check_ranges, load_settings


class OperatorSecrets(Unprinted, frozen=True):
    """What workers are given through a Secret of their own; its repr says only what is set."""

    fleet_token: str = ""
    chunk_secret: str = ""
    """1 to 16 hex digits."""
    redis_url: str = ""


class OperatorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator's settings; RANGES holds what is allowed for each number."""

    image: str = "penstock:latest"
    """Image of worker Pods whose ModelService names none."""
    namespace: str = "penstock-system"
    """Where the operator itself runs: its Lease, and from where workers may be called."""
    watch_namespace: str = ""
    """The one namespace it looks after; empty: all."""
    router_url: str = "http://penstock-router.penstock-system:8000"
    """Told as the endpoint of every ModelService."""
    identity: str = ""
    """Unique per process, in the Lease; empty: host name and a random part."""
    concurrency: int = 16
    """ModelServices reconciled at a time."""
    resync_s: float = 600.0
    """How often everything is listed anew."""
    registry_interval_s: float = 60.0
    """How often ready Pods are compared with the registry."""
    status_interval_s: float = 1.0
    """Status of one object is written at most this often, except when Ready changes."""
    lease_duration_s: float = 15.0
    renew_deadline_s: float = 10.0
    retry_period_s: float = 2.0
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
        if not self.retry_period_s < self.renew_deadline_s < self.lease_duration_s:
            raise ConfigError(
                f"retry_period_s, renew_deadline_s and lease_duration_s are {self.retry_period_s:g}, {self.renew_deadline_s:g} and "
                f"{self.lease_duration_s:g}; allowed: each smaller than the next"
            )
        if not self.image:
            raise ConfigError("image is empty; allowed: the reference of the image that workers run")


RANGES: dict[str, tuple[float, float, str]] = {
    "concurrency": (1, 256, "ModelServices"),
    "resync_s": (1, 86_400, "seconds"),
    "registry_interval_s": (1, 3_600, "seconds"),
    "status_interval_s": (0, 60, "seconds"),
    "lease_duration_s": (1, 600, "seconds"),
    "renew_deadline_s": (0.5, 600, "seconds"),
    "retry_period_s": (0.1, 600, "seconds"),
    "port": (0, 65_535, ""),
}
"""What is allowed for each number: lowest, highest, unit."""


def load_config(path: Path | None, settings: Mapping[str, Any]) -> OperatorConfig:
    """The file's settings with `settings` (None: not given) laid over. Raises ConfigError."""
    return load_settings(path, settings, OperatorConfig)


def load_secrets(environ: Mapping[str, str]) -> OperatorSecrets:
    """Secrets from the environment or the files it names. Raises ConfigError, never quoting one."""
    chunk_secret = read_secret(environ, CHUNK_SECRET)
    parse_chunk_secret(chunk_secret)
    return OperatorSecrets(read_secret(environ, FLEET_TOKEN), chunk_secret, read_secret(environ, REDIS_URL))
