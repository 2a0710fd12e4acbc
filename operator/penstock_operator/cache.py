"""What the API server last said, kept by kind: fed by the watches, replaced by each listing, so no deleted object can stay.

`feed` fills it, `apply` puts in the answers to our own writes, `observe` reads. Objects come as `difference.kept` leaves them, and
are found by the ModelService they belong to. Used from one event loop. It decides nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from penstock_operator import names
from penstock_operator.kinds import MODEL_SERVICE, ObjectKind

Key = tuple[str, str]
"""Namespace and name of a ModelService."""
Raw = Mapping[str, Any]


class _Shelf:
    """The objects of one kind. `listed` is the version of the last listing: what is older and not here is gone."""

    __slots__ = ("deleted", "listed", "objects")

    def __init__(self) -> None:
        self.objects: dict[Key, Raw] = {}
        self.listed = -1
        self.deleted: dict[str, int] = {}  # uid → version of the deletion, since the last listing


class Cache:
    """See the module. Versions are resourceVersions, which rise over all objects of a kind."""

    def __init__(self, kinds: Iterable[ObjectKind]) -> None:
        self._shelves = {kind: _Shelf() for kind in kinds}
        self._owned: dict[Key, dict[ObjectKind, dict[str, Raw]]] = {}

    @property
    def synced(self) -> bool:
        """Every kind has been listed."""
        return all(shelf.listed >= 0 for shelf in self._shelves.values())

    def count(self, kind: ObjectKind) -> int:
        return len(self._shelves[kind].objects)

    def services(self) -> list[Key]:
        """Every ModelService."""
        return list(self._shelves[MODEL_SERVICE].objects)

    def get(self, kind: ObjectKind, namespace: str, name: str) -> Raw | None:
        return self._shelves[kind].objects.get((namespace, name))

    def owned(self, key: Key, kind: ObjectKind) -> Mapping[str, Raw]:
        """The objects of `kind` that belong to a ModelService, by name."""
        return self._owned.get(key, {}).get(kind, {})

    def put(self, kind: ObjectKind, raw: Raw) -> set[Key]:
        """An object as it is now; gives the ModelServices concerned, none if this was nothing new."""
        shelf, metadata = self._shelves[kind], raw["metadata"]
        version = version_of(raw)
        place = (metadata["namespace"], metadata["name"])
        there = shelf.objects.get(place)
        if version <= shelf.deleted.get(metadata["uid"], -1) or version <= (shelf.listed if there is None else version_of(there)):
            return set()
        return self._place(kind, place, raw)

    def remove(self, kind: ObjectKind, raw: Raw) -> set[Key]:
        """An object was deleted; gives the ModelService concerned, none if it was gone already or another has its name."""
        shelf, metadata = self._shelves[kind], raw["metadata"]
        place = (metadata["namespace"], metadata["name"])
        shelf.deleted[metadata["uid"]] = version_of(raw)
        there = shelf.objects.get(place)
        if there is None or there["metadata"]["uid"] != metadata["uid"]:
            return set()
        return {self._drop(kind, place)}

    def forget(self, kind: ObjectKind, namespace: str, name: str, uid: str) -> None:
        """The object is known to be gone, ahead of its event."""
        there = self.get(kind, namespace, name)
        if there is not None and there["metadata"]["uid"] == uid:
            self._shelves[kind].deleted[uid] = version_of(there)
            self._drop(kind, (namespace, name))

    def replace(self, kind: ObjectKind, items: Iterable[Raw], version: int) -> set[Key]:
        """A whole listing, as of `version`: what is not in it and not newer is gone. Gives the ModelServices concerned."""
        shelf = self._shelves[kind]
        if version < shelf.listed:
            return set()
        concerned: set[Key] = set()
        listed = set()
        for raw in items:
            metadata = raw["metadata"]
            if version_of(raw) <= shelf.deleted.get(metadata["uid"], -1):
                continue  # deleted after the listing was made
            place = (metadata["namespace"], metadata["name"])
            listed.add(place)
            there = shelf.objects.get(place)
            if there is None or version_of(there) < version_of(raw):
                concerned |= self._place(kind, place, raw)
        for place, raw in list(shelf.objects.items()):
            if place not in listed and version_of(raw) <= version:
                concerned.add(self._drop(kind, place))
        shelf.listed = version
        shelf.deleted = {uid: at for uid, at in shelf.deleted.items() if at > version}
        return concerned

    def _place(self, kind: ObjectKind, place: Key, raw: Raw) -> set[Key]:
        key = belongs_to(kind, raw)
        before = self._shelves[kind].objects.get(place)
        was = key if before is None else belongs_to(kind, before)
        if was != key:
            self._disown(was, kind, place[1])
        self._shelves[kind].objects[place] = raw
        if kind is not MODEL_SERVICE:
            self._owned.setdefault(key, {}).setdefault(kind, {})[place[1]] = raw
        return {was, key}

    def _drop(self, kind: ObjectKind, place: Key) -> Key:
        key = belongs_to(kind, self._shelves[kind].objects.pop(place))
        self._disown(key, kind, place[1])
        return key

    def _disown(self, key: Key, kind: ObjectKind, name: str) -> None:
        owned = self._owned.get(key, {})
        owned.get(kind, {}).pop(name, None)
        if not owned.get(kind):
            owned.pop(kind, None)
        if not owned:
            self._owned.pop(key, None)


def version_of(raw: Raw) -> int:
    """The object's resourceVersion as a number; 0 where it is none."""
    version = str(raw["metadata"].get("resourceVersion", ""))
    return int(version) if version.isdecimal() else 0


def belongs_to(kind: ObjectKind, raw: Raw) -> Key:
    """The ModelService an object belongs to, by its label."""
    metadata = raw["metadata"]
    if kind is MODEL_SERVICE:
        return metadata["namespace"], metadata["name"]
    return metadata["namespace"], (metadata.get("labels") or {}).get(names.SERVICE_LABEL, "")
