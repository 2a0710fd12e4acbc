"""Everything that can be set about an operator: one frozen value per process, loaded once, each setting with unit and range.

The `operator` command makes it; the planner reads what it needs to render, the shell the rest. Secrets are kept apart and never
printed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec


class ConfigError(ValueError):
    """A setting cannot be used; the message names it, its value and what is allowed."""


class OperatorSecrets(msgspec.Struct, frozen=True):
    """What workers are given through a Secret of their own; its repr says only what is set."""

    fleet_token: str = ""
    chunk_secret: str = ""
    """1 to 16 hex digits."""
    redis_url: str = ""

    def __repr__(self) -> str:
        return f"OperatorSecrets({', '.join(f'{name}=***' for name in self.__struct_fields__ if getattr(self, name))})"


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
        for name, (low, high, unit) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}; allowed: {low:g} to {high:g} {unit}")
        if not self.retry_period_s < self.renew_deadline_s < self.lease_duration_s:
            raise ConfigError(
                f"retry_period_s, renew_deadline_s and lease_duration_s are {self.retry_period_s:g}, {self.renew_deadline_s:g} and "
                f"{self.lease_duration_s:g}; allowed: each smaller than the next"
            )
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(f"log_level is {self.log_level!r}; allowed: {', '.join(LOG_LEVELS)}")
        if not self.image:
            raise ConfigError("image is empty; allowed: the reference of the image that workers run")


LOG_LEVELS = ("debug", "info", "warning", "error")
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

SECRET_NAMES = {"fleet_token": "PENSTOCK_FLEET_TOKEN", "chunk_secret": "PENSTOCK_CHUNK_SECRET", "redis_url": "PENSTOCK_REDIS_URL"}
"""Environment variable of each secret; the same name with _FILE names a file that holds it."""


def load_config(path: Path | None, settings: Mapping[str, Any]) -> OperatorConfig:
    """The file's settings (JSON) with `settings` (None: not given) laid over. Raises ConfigError."""
    found: Any = {}
    if path is not None:
        try:
            found = msgspec.json.decode(path.read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"config {str(path)!r} cannot be read: {error}") from None
        if not isinstance(found, dict):
            raise ConfigError(f"config {path} holds a {type(found).__name__}; allowed: a mapping of settings")
    try:
        return msgspec.convert(
            {**found, **{name: value for name, value in settings.items() if value is not None}}, OperatorConfig, strict=False
        )
    except msgspec.ValidationError as error:
        raise ConfigError(f"config: {error}") from None


def load_secrets(environ: Mapping[str, str]) -> OperatorSecrets:
    """Secrets from the environment or the files it names. Raises ConfigError, never quoting one."""
    secrets = OperatorSecrets(**{field: _secret(environ, name) for field, name in SECRET_NAMES.items()})
    digits = secrets.chunk_secret
    if digits and (len(digits) > 16 or any(letter not in "0123456789abcdefABCDEF" for letter in digits)):
        raise ConfigError("PENSTOCK_CHUNK_SECRET is not usable; allowed: 1 to 16 hex digits")
    return secrets


def _secret(environ: Mapping[str, str], name: str) -> str:
    value, path = environ.get(name, ""), environ.get(f"{name}_FILE")
    if value or not path:
        return value
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}_FILE is {path!r}; it cannot be read: {error}") from None
