"""Asks a running router's `/admin/*`: which router, with which key, and what it answered or why it did not.

`status` and `explain` call it. The router is the one of the data folder, or one named by URL.
"""

import os
from typing import Any

import httpx
from penstock_core.errors import PenstockError

from penstock_cli.data_folder import DataFolder

ADMIN_KEY_ENV = "PENSTOCK_ADMIN_KEY"
_TIMEOUT_S = 10.0


class NoRouter(PenstockError):
    """No router answered as it should; the message says which was asked and what to do."""


def ask(data: DataFolder, url: str | None, path: str, query: dict[str, str | int] | None = None) -> dict[str, Any]:
    """GET `path` of the router at `url`, or of the one that runs in the data folder. Raises NoRouter."""
    if url is None:
        running = data.running()
        if running is None:
            raise NoRouter(
                f"no `penstock up` runs with the data folder {str(data.path)!r}; "
                "start one, name its folder with --data, a router with --url, or a cluster with --kubeconfig"
            )
        url = running.router_url
    key = os.environ.get(ADMIN_KEY_ENV) or data.admin_key()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(url.rstrip("/") + path, params=query, headers=headers, timeout=_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as error:
        raise NoRouter(f"the router at {url} does not answer: {error or type(error).__name__}") from None
    if answer.status_code in (401, 403):
        raise NoRouter(f"the router at {url} wants another admin key: set {ADMIN_KEY_ENV}, or name its data folder with --data")
    if answer.status_code != 200:
        raise NoRouter(f"{url}{path} answered {answer.status_code}: {answer.text[:200]}; is it a Penstock router?")
    try:
        found = answer.json()
    except ValueError:
        raise NoRouter(f"{url}{path} did not answer with JSON; is it a Penstock router?") from None
    if not isinstance(found, dict):
        raise NoRouter(f"{url}{path} answered with a JSON {type(found).__name__}; is it a Penstock router?")
    return found
