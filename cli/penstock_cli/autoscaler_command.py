"""`penstock autoscaler`: from the command line's words to an autoscaler process of a cluster, with the simulator that answers "what if".

Command line over file, file over defaults. It reads no environment but the secrets. Only here do autoscaler and simulator meet in a
running system; `kubernetes` comes with the first import below.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock_core.errors import PenstockError

from penstock_cli.settings import parse_settings


class NotInstalled(PenstockError):
    """The Kubernetes client is not there."""


def run_from_settings(config: Path | None, settings: dict[str, Any], others: Sequence[str]) -> int:
    """Run an autoscaler until it is told to end; gives its exit status. Raises ConfigError, NotInstalled or ScaleFailed."""
    try:
        from penstock_autoscaler.process import serve_autoscaler
    except ImportError as error:
        raise NotInstalled(f"{error.name} is not installed; install penstock[operator]") from None
    from penstock_autoscaler.config import load_config, load_secrets
    from penstock_simulator.what_if import Replayed, warm_up

    found = load_config(config, {**settings, **parse_settings(others)})
    return serve_autoscaler(found, load_secrets(os.environ), Replayed, warm_up)
