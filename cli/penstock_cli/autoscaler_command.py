"""`penstock autoscaler`: from the command line's words to an autoscaler process of a cluster, with the simulator that answers "what if".

Command line over file, file over defaults. It reads no environment but the secrets. Only here do autoscaler and simulator meet in a
running system; `kubernetes` comes with the first import below.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock_cli.extras import needing
from penstock_cli.settings import parse_settings


def run_from_settings(config: Path | None, settings: dict[str, Any], others: Sequence[str]) -> int:
    """Run an autoscaler until it is told to end; gives its exit status. Raises ConfigError, NotInstalled or ScaleFailed."""
    with needing("operator"):
        from penstock_autoscaler.process import serve_autoscaler
    from penstock_autoscaler.config import load_config, load_secrets
    from penstock_simulator.what_if import Replayed, warm_up

    found = load_config(config, {**settings, **parse_settings(others)})
    return serve_autoscaler(found, load_secrets(os.environ), Replayed, warm_up)
