"""Secrets of a process: from the environment or from files it names, never printed, never quoted in an error.

Each process has its own struct of those it needs, made from `Secret` fields; `repr` says only which are set.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from penstock_process.settings import ConfigError

CHUNK_SECRET = "PENSTOCK_CHUNK_SECRET"  # noqa: S105 -- names of variables, not secrets
FLEET_TOKEN = "PENSTOCK_FLEET_TOKEN"  # noqa: S105
ADMIN_KEY = "PENSTOCK_ADMIN_KEY"
REDIS_URL = "PENSTOCK_REDIS_URL"


class Unprinted(msgspec.Struct, frozen=True):
    """Base of structs that hold secrets."""

    def __repr__(self) -> str:
        named = [name for name in self.__struct_fields__ if getattr(self, name)]
        return f"{type(self).__name__}({', '.join(f'{name}=***' for name in named)})"


def read_secret(environ: Mapping[str, str], name: str) -> str:
    """The variable's value, else what the file named by `<name>_FILE` holds, else "". Raises ConfigError for an unreadable file."""
    value, path = environ.get(name, ""), environ.get(f"{name}_FILE")
    if value or not path:
        return value
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}_FILE is {path!r}; it cannot be read: {error}") from None


def parse_chunk_secret(written: str) -> int:
    """The seed of the chunk keys from 1 to 16 hex digits; 0 for an empty text. Raises ConfigError without quoting it."""
    try:
        value = int(written, 16) if written else 0
    except ValueError:
        value = -1
    if not 0 <= value < 2**64:
        raise ConfigError(f"{CHUNK_SECRET} is not usable; allowed: 1 to 16 hex digits")
    return value
