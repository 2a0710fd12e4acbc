"""`penstock router`: from the command line's words to a RouterConfig and its secrets; the running is router.py's.

Command line over file, file over defaults. It reads no environment but the secrets.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock_process.announcing import announce
from penstock_router.config import load_config, load_secrets, parse_endpoint

from penstock_cli.router import run_router
from penstock_cli.settings import parse_settings


def run_from_settings(
    config: Path | None,
    settings: dict[str, Any],
    endpoints: Sequence[str],
    models: Sequence[str],
    others: Sequence[str],
    url_file: Path | None,
) -> int:
    """Run a router until it has drained; gives its exit status. `settings` of None were not given. Raises ConfigError."""
    given = {**settings, **parse_settings(others)}
    if endpoints:
        given["endpoints"] = [parse_endpoint(endpoint) for endpoint in endpoints]
    if models:
        given["models"] = [{"name": name} for name in models]

    def started(host: str, port: int) -> None:
        if url_file is not None:
            shown = f"[{host}]" if ":" in host else host
            announce(url_file, f"http://{shown}:{port}")

    return run_router(load_config(config, given), load_secrets(os.environ), started=started)
