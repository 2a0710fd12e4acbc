"""The Secret of an installation: what its routers, workers and Redis share, made by chance where nobody has set it.

The chart makes it empty, and the first container of the operator's Pod fills it (`penstock fill-secret`): so no secret stands in
a manifest, rendering gives the same twice, and no two installations share one. What is there is never changed.
"""

import base64
import os
from collections.abc import Callable, Mapping
from secrets import token_hex
from typing import Any, Protocol

from penstock_core.errors import PenstockError

from penstock_operator.api_server import ApiError, ApiServer, Conflict, login
from penstock_operator.kinds import SECRET, ObjectKind

BYTES = {"fleet-token": 32, "chunk-secret": 8, "admin-key": 32, "redis-password": 32}
"""Key → bytes of chance in it, written as hex digits."""
_ATTEMPTS = 5


class NotFilled(PenstockError):
    """There is no such Secret, or it cannot be read or written; the message says which."""


class Secrets(Protocol):
    """What is asked of the API server here."""

    async def read(self, kind: ObjectKind, namespace: str, name: str) -> dict[str, Any] | None: ...
    async def replace(self, kind: ObjectKind, namespace: str, name: str, body: Mapping[str, Any]) -> dict[str, Any]: ...


def filled(secret: Mapping[str, Any], draw: Callable[[int], str]) -> tuple[dict[str, Any], list[str]]:
    """The Secret with every key of BYTES, and which of them were drawn (`draw(bytes)` gives hex digits)."""
    data = dict(secret.get("data") or {})
    missing = [key for key in BYTES if not data.get(key)]
    data |= {key: base64.b64encode(draw(BYTES[key]).encode()).decode() for key in missing}
    return {**secret, "data": data}, missing


async def fill(server: Secrets, namespace: str, name: str) -> list[str]:
    """Fill it; gives the keys that were missing. Of several at once one wins and the others find it filled. Raises NotFilled, ApiError."""
    attempts = _ATTEMPTS
    while True:
        secret = await server.read(SECRET, namespace, name)
        if secret is None:
            raise NotFilled(f"there is no Secret {name!r} in namespace {namespace!r}; the chart makes it, empty")
        body, missing = filled(secret, token_hex)
        if not missing:
            return []
        try:
            await server.replace(SECRET, namespace, name, body)
            return missing
        except Conflict:
            attempts -= 1
            if attempts == 0:
                raise


async def fill_with(kubeconfig: str, namespace: str, name: str) -> list[str]:
    """`fill` with a login and a connection of its own. Raises NotFilled."""
    server = ApiServer(await login(kubeconfig, os.environ))
    await server.open()
    try:
        return await fill(server, namespace, name)
    except ApiError as error:
        raise NotFilled(f"Secret {name!r} in namespace {namespace!r}: {error}") from None
    finally:
        await server.aclose()
