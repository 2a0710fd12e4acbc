"""What workers must know and nobody else: the keys of a ModelService's Secret, and the environment that brings them into Pods.

`children` writes the Secret, `pod` refers to it. Values never leave this module but in the Secret itself; a Pod shows only a keyed
digest of them, so that a changed secret is a new template and rolls out like any other change.
"""

import hashlib
import hmac
from typing import Any

import msgspec

from penstock_operator.config import OperatorSecrets

RAY_TOKEN = "ray-token"  # noqa: S105 -- the name of a key
ENV_OF_KEY = {
    "fleet-token": "PENSTOCK_FLEET_TOKEN",
    "chunk-secret": "PENSTOCK_CHUNK_SECRET",
    "redis-url": "PENSTOCK_REDIS_URL",
    RAY_TOKEN: "RAY_AUTH_TOKEN",
}
"""Key of the workers' Secret → environment variable."""


def secret_values(service_uid: str, secrets: OperatorSecrets) -> dict[str, str]:
    """The Secret's keys that have a value. The Ray token is derived, so that writing it again writes the same."""
    ray_token = hmac.new(f"ray/{secrets.fleet_token}".encode(), service_uid.encode(), hashlib.sha256).hexdigest()
    values = {
        "fleet-token": secrets.fleet_token,
        "chunk-secret": secrets.chunk_secret,
        "redis-url": secrets.redis_url,
        RAY_TOKEN: ray_token if secrets.fleet_token else "",
    }
    return {key: value for key, value in values.items() if value}


def secret_digest(secrets: OperatorSecrets) -> str:
    """Ten hex digits that change when a secret does; empty without a fleet token, which is the digest's own key.

    Keyed, because a Redis password may be weak and Pods can be read by many.
    """
    if not secrets.fleet_token:
        return ""
    values = msgspec.json.encode(msgspec.structs.astuple(secrets))
    return hmac.new(secrets.fleet_token.encode(), values, hashlib.sha256).hexdigest()[:10]


def secret_env(secret: str, secrets: OperatorSecrets, *, ray: bool) -> list[dict[str, Any]]:
    """Environment of a worker from the Secret of that name. Every key must be there: a Pod waits for its Secret."""
    keys = secret_values("", secrets)
    return [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for key, variable in ENV_OF_KEY.items()
        if key in keys and (ray or key != RAY_TOKEN)
    ]
