"""Settings from a file with the command line's laid over, checked against ranges; wrong ones are named with what is allowed.

Each process has one frozen msgspec struct of settings and a table of ranges; its `config` module calls these functions.
"""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

Settings = TypeVar("Settings", bound=msgspec.Struct)
Ranges = Mapping[str, tuple[float, float, str]]
"""Field to lowest value, highest value, unit."""

LOG_LEVELS = ("debug", "info", "warning", "error")


class ConfigError(ValueError):
    """A setting cannot be used; the message names it, its value and what is allowed."""


def check_ranges(settings: msgspec.Struct, ranges: Ranges) -> None:
    """Raises ConfigError for the first number out of its range; None passes where the field allows it."""
    for name, (low, high, unit) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{name} is {value!r}; allowed: {low:g} to {high:g} {unit}".rstrip())


def check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError for a word that is not among the allowed ones."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def load_settings(path: Path | None, given: Mapping[str, Any], into: type[Settings]) -> Settings:
    """A YAML or JSON file's settings with `given` (None: not given) laid over them. Raises ConfigError."""
    found: Any = {}
    if path is not None:
        try:
            found = msgspec.yaml.decode(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"config is {str(path)!r}: {error.strerror}") from None
        except (msgspec.DecodeError, ValueError) as error:
            raise ConfigError(f"config {path} is neither YAML nor JSON: {error}") from None
        found = {} if found is None else found
        if not isinstance(found, dict):
            raise ConfigError(f"config {path} holds a {type(found).__name__}; allowed: a mapping of settings")
    return to_settings({**found, **{name: value for name, value in given.items() if value is not None}}, into, "config")


def to_settings(fields: Mapping[str, Any], into: type[Settings], where: str) -> Settings:
    """The checked struct. Raises ConfigError that begins with `where` and holds the offending value."""
    try:
        return msgspec.convert(fields, into, strict=False)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise ConfigError(f"{where}: {error.__cause__}") from None
        name = str(error).rpartition("`$.")[2].rstrip("`").partition("[")[0].partition(".")[0]
        found = f"; {name} is {fields[name]!r}" if name in fields else ""
        kind = get_type_hints(into).get(name)
        if isinstance(kind, type) and issubclass(kind, Enum):
            found += f"; allowed: {', '.join(str(one.value) for one in kind)}"
        raise ConfigError(f"{where}: {error}{found}") from None
