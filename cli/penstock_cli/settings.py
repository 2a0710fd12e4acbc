"""`--set name=value` of the process commands: text from a command line to settings, checked by the process' own config.

It knows no setting: values are read as JSON where they are JSON (numbers, true, null) and as text otherwise.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from penstock_core.errors import PenstockError


def parse_settings(written: Sequence[str]) -> dict[str, Any]:
    """`["drain_s=3"]` → `{"drain_s": 3}`; dashes in names are taken as underscores. Raises PenstockError without a `=`."""
    found: dict[str, Any] = {}
    for one in written:
        name, equals, value = one.partition("=")
        if not equals or not name.strip():
            raise PenstockError(f"--set is {one!r}; allowed: name=value")
        try:
            found[name.strip().replace("-", "_")] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            found[name.strip().replace("-", "_")] = value
    return found


def parse_environment(written: Sequence[str]) -> dict[str, str]:
    """`["UCX_TLS=tcp,sm"]` → `{"UCX_TLS": "tcp,sm"}`. Raises PenstockError without a name or a `=`."""
    found = {}
    for one in written:
        name, equals, value = one.partition("=")
        if not equals or not name.strip():
            raise PenstockError(f"--engine-env is {one!r}; allowed: NAME=value")
        found[name.strip()] = value
    return found
