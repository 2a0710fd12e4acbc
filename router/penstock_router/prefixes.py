"""Who is believed to hold the beginning of a prompt, by its chunk keys.

The director hashes the keys; a model's `PrefixCache` (here `GuessedCache`, for endpoints given by hand; for registered
ones the index mirror) finds holders and books placements. It knows no HTTP and no policies.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from penstock_core.endpoint import Endpoint

from penstock_router.scheduling import Held

MOST_CHUNKS = 4096
"""Chunks of one prompt that are looked up or booked at most: 1 MB of text."""

_FRESH_RATIO = 0.05
"""Of the lapse time: so young a booking need not be renewed."""

Keys = NDArray[np.uint64]
"""Shape (chunks of a prompt,), contiguous and writable."""
Found = tuple[Held | None, Mapping[str, int] | None]
"""Hits by index slot, or hits by endpoint id: the two forms that an Ask takes."""


class PrefixCache(Protocol):
    """Who holds which prefix, for one served model."""

    def find(self, keys: Keys) -> Found:
        """Holders of leading chunks of a prompt with these keys, of one chunk at least."""

    def book(self, endpoint: Endpoint, keys: Keys, now: float) -> None:
        """A request with this prompt is on its way to the endpoint: siblings should follow it there."""

    def drop(self, endpoint_id: str) -> None:
        """The endpoint is gone, and its cache with it."""


class GuessedCache:
    """What endpoints without KV events probably hold: the prompts placed on them, least recently used out first, lapsing.

    State: per endpoint an ordered map of key to lapse time, newest last; per key a bit mask of endpoints. Both change
    together, in `book` and `drop` only.
    """

    def __init__(self, capacity_chunks: int, lapse_s: float) -> None:
        self._capacity = capacity_chunks
        self._lapse_s = lapse_s
        self._masks: dict[int, int] = {}
        self._held: dict[str, tuple[int, OrderedDict[int, float]]] = {}

    def __len__(self) -> int:
        return len(self._masks)

    def find(self, keys: Keys) -> Found:
        hits: dict[str, int] = {}
        mask, depth = -1, 0
        for key in keys.tolist():
            left = mask & self._masks.get(key, 0)
            if left != mask:
                if depth:
                    self._note(hits, mask & ~left, depth)
                mask = left
                if not mask:
                    return None, hits
            depth += 1
        if depth:
            self._note(hits, mask, depth)
        return None, hits

    def book(self, endpoint: Endpoint, keys: Keys, now: float) -> None:
        if endpoint.id not in self._held:
            self._held[endpoint.id] = (self._free_bit(), OrderedDict())
        bit, held = self._held[endpoint.id]
        until_s = now + self._lapse_s
        if held.get(int(keys[-1]), 0.0) > until_s - self._lapse_s * _FRESH_RATIO:
            return  # placed here a moment ago: all of it is there and far from lapsing
        # Last chunk first, so that the tail of a prompt is always older than its head and is evicted before it.
        for key in reversed(keys.tolist()):
            if key in held:
                held.move_to_end(key)
            else:
                self._masks[key] = self._masks.get(key, 0) | bit
            held[key] = until_s
        while held and (len(held) > self._capacity or next(iter(held.values())) <= now):
            self._forget(held.popitem(last=False)[0], bit)

    def drop(self, endpoint_id: str) -> None:
        bit, held = self._held.pop(endpoint_id, (0, {}))
        for key in held:
            self._forget(key, bit)

    def _free_bit(self) -> int:
        used = 0
        for bit, _ in self._held.values():
            used |= bit
        return ~used & (used + 1)

    def _forget(self, key: int, bit: int) -> None:
        left = self._masks[key] & ~bit
        if left:
            self._masks[key] = left
        else:
            del self._masks[key]

    def _note(self, hits: dict[str, int], mask: int, depth: int) -> None:
        for endpoint_id, (bit, _) in self._held.items():
            if mask & bit:
                hits[endpoint_id] = depth
