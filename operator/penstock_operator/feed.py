"""From watch events to keys: keeps the cache and tells the queue which ModelService is concerned.

`handlers` calls it from Kopf's thread, through `post`; everything else happens in the operator's own event loop.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from penstock_operator.cache import Cache, Key
from penstock_operator.kinds import MODEL_SERVICE, ObjectKind

_TOGETHER_S = 0.05
"""Events of what belongs to a ModelService are gathered this long: twenty Pods that become ready are one reconcile."""


class Feed:
    """See the module. `add(key, generation, delay_s)` puts a key into the queue."""

    def __init__(self, cache: Cache, add: Callable[[Key, int, float], None]) -> None:
        self._cache = cache
        self._add = add
        self._loop = asyncio.get_running_loop()
        self._last: dict[str, float] = {}
        self.synced = asyncio.Event()
        """Set once every kind has been listed."""
        self.services = asyncio.Event()
        """Set when a ModelService may have changed; `targets` clears it."""

    def ages(self) -> dict[str, float]:
        """Seconds since each kind's stream last said anything; only of kinds that have been listed."""
        now = time.monotonic()
        return {kind: now - at for kind, at in self._last.items()}

    def heard(self, kind: ObjectKind) -> None:
        """From any thread: the stream of `kind` is alive."""
        self._last[kind.kind] = time.monotonic()

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """From any thread: have one of the methods below called in the loop, in the order of the posts."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            pass  # the loop is closed: the process is ending

    def listed(self, kind: ObjectKind, items: list[dict[str, Any]], version: int) -> None:
        """A whole listing of `kind`, each item as `difference.kept` leaves it."""
        self._tell(self._cache.replace(kind, items, version))
        if kind is MODEL_SERVICE:
            self.services.set()
        if not self.synced.is_set() and self._cache.synced:
            self.synced.set()

    def changed(self, kind: ObjectKind, events: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Watch events in their order: ADDED, MODIFIED or DELETED, and the object as `difference.kept` leaves it."""
        keys: set[Key] = set()
        for event, raw in events:
            keys |= self._cache.remove(kind, raw) if event == "DELETED" else self._cache.put(kind, raw)
        if kind is MODEL_SERVICE:
            self.services.set()
        self._tell(keys, 0.0 if kind is MODEL_SERVICE else _TOGETHER_S)

    def _tell(self, keys: set[Key], delay_s: float = 0.0) -> None:
        for key in keys:
            service = self._cache.get(MODEL_SERVICE, *key)
            if key[1] and self.synced.is_set():
                self._add(key, -1 if service is None else service["metadata"].get("generation", -1), delay_s)
