"""Reads an engine's own metrics: the few figures that the worker reports, out of Prometheus' text form. Pure.

Each dialect says which families it means; `engine` scrapes once a second. Unknown families are passed over; a missing one is 0.
"""

import re
from collections.abc import Iterator

import msgspec

_LINE = re.compile(r"^([a-z_]+:[a-z_]+)(?:\{(.*)\})? ([0-9.eE+-]+|NaN)$", re.MULTILINE)
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')


class Gauges(msgspec.Struct, frozen=True, kw_only=True):
    """As of one scrape; counters since the engine's start."""

    running: float = 0.0
    waiting: float = 0.0
    kv_usage_ratio: float = 0.0
    pulled_bytes: float = 0.0
    expired: float = 0.0
    failed_transfers: float = 0.0
    block_tokens: int = 0
    blocks: int = 0
    """0: the engine does not say."""


def samples(text: str) -> Iterator[tuple[str, str, float]]:
    """Family, labels as written, and value of each sample that is a number."""
    for family, labels, value in _LINE.findall(text):
        if value != "NaN":
            yield family, labels, float(value)


def labels_of(written: str) -> dict[str, str]:
    """Labels of a sample by name."""
    return dict(_LABEL.findall(written))
