"""`penstock operator` and `penstock fill-secret`: from the command line's words to what penstock_operator does with them.

Command line over file, file over defaults. It reads no environment but the secrets. Only here is the operator imported: it brings
`kopf` and `kubernetes`, which no other command needs.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock_cli.extras import needing
from penstock_cli.settings import parse_settings


def run_from_settings(config: Path | None, settings: dict[str, Any], others: Sequence[str]) -> int:
    """Run an operator until it is told to end; gives its exit status. Raises ConfigError or NotInstalled."""
    with needing("operator"):
        from penstock_operator.config import load_config, load_secrets
        from penstock_operator.process import serve_operator
    return serve_operator(load_config(config, {**settings, **parse_settings(others)}), load_secrets(os.environ))


def fill_secret(kubeconfig: str, namespace: str, name: str) -> None:
    """Give the installation's Secret random values where it has none. Raises NotInstalled or NotFilled."""
    with needing("operator"):
        from penstock_operator.own_secret import fill_with
    drawn = asyncio.run(fill_with(kubeconfig, namespace, name))
    sys.stdout.write(f"Secret {name}: {', '.join(drawn) + ' made' if drawn else 'nothing was missing'}\n")
