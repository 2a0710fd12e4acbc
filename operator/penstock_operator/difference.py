"""Whether an object that is there is as we would write it: no write where there is no difference.

`plan` asks before it plans a write. What others have added is none of our business; what we once wrote and no longer want is told
by the hash in the `applied` annotation. Pure.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from penstock_operator.kinds import POD, REVISION, ObjectKind

_WHOLE = ("selector", "matchLabels", "podSelector")
"""A key that somebody adds to these changes their meaning."""


def differs(wanted: Mapping[str, Any], live: Mapping[str, Any] | None) -> bool:
    """Whether `wanted` has to be applied."""
    return live is None or not _within(wanted, live)


def _within(wanted: Any, live: Any) -> bool:
    """Every field of `wanted` is in `live` with that value; null is as good as absent. Lists must be equal item by item."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            (value is None and live.get(name) is None)
            or (name == "ownerReferences" and all(one in (live.get(name) or ()) for one in value))
            or (name in live and (live[name] == value if name in _WHOLE else _within(value, live[name])))
            or (name == "conditions" and isinstance(value, list) and _each_within(value, live.get(name)))
            or (name not in live and value in ({}, []))
            for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(wanted) == len(live)
            and all(_within(one, other) for one, other in zip(wanted, live, strict=True))
        )
    return bool(wanted == live)


def _each_within(wanted: list[Any], live: Any) -> bool:
    """Conditions are a map by their type: another controller may have added its own."""
    there = {one.get("type"): one for one in live or ()}
    return all(one["type"] in there and _within(one, there[one["type"]]) for one in wanted)


def pod_differs(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """As `differs` for what may change in a Pod: labels, annotations, owner and images. Anything else makes another template hash."""
    images = {container["name"]: container["image"] for container in wanted["spec"]["containers"]}
    there = {container["name"]: container["image"] for container in live.get("spec", {}).get("containers", ())}
    metadata = {name: wanted["metadata"][name] for name in ("labels", "annotations") if name in wanted["metadata"]}
    return not _within(metadata, live["metadata"]) or any(there.get(name) != image for name, image in images.items())


def kept(raw: Mapping[str, Any], kind: ObjectKind) -> dict[str, Any]:
    """The part of an object that is worth remembering: no managed fields, of a Pod what `gangs` reads, a revision's data packed."""
    metadata = {name: value for name, value in raw["metadata"].items() if name not in ("managedFields", "selfLink", "generateName")}
    small = {**raw, "metadata": metadata}
    if kind is POD:
        spec, status = raw.get("spec") or {}, raw.get("status") or {}
        small["spec"] = {"containers": [{"name": c["name"], "image": c.get("image", "")} for c in spec.get("containers", ())]}
        small["status"] = {name: status[name] for name in ("phase", "podIP") if name in status}
        small["status"]["conditions"] = [c for c in status.get("conditions") or () if c.get("type") in ("Ready", "PodScheduled")]
        small["status"]["containerStatuses"] = [{"state": c.get("state") or {}} for c in status.get("containerStatuses") or ()]
    elif kind is REVISION and "data" in raw:
        small["data"] = msgspec.json.encode(raw["data"])
    return small
