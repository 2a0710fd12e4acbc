"""`penstock worker`: from the command line's words to a WorkerConfig and its secrets; the running is worker.py's.

Command line over file, file over defaults. It reads no environment but the secrets.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock_worker.config import load_config, load_secrets

from penstock_cli.settings import parse_settings
from penstock_cli.worker import run_worker


def run_from_settings(config: Path | None, settings: dict[str, Any], others: Sequence[str]) -> None:
    """Serve one worker until a signal ends it. `settings` of None were not given. Raises ConfigError or OSError."""
    run_worker(load_config(config, {**settings, **parse_settings(others)}), load_secrets(os.environ))
