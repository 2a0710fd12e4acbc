"""Lays a user's `podTemplate` over the generated Pod template: containers by name, the rest as an RFC 7396 merge patch.

`pod` calls it. It knows nothing of what the fields mean, and changes none of its arguments.
"""

from collections.abc import Mapping
from typing import Any

_BY_NAME = ("containers", "initContainers")


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: mappings are merged, null removes, everything else replaces."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def merge_template(template: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A Pod template (metadata, spec) with `patch` laid over it."""
    spec = patch.get("spec") if isinstance(patch.get("spec"), Mapping) else {}
    lists = {name: spec[name] for name in _BY_NAME if isinstance(spec.get(name), list)}  # type: ignore[index, union-attr]
    plain = {**patch, "spec": {name: value for name, value in spec.items() if name not in lists}} if lists else patch  # type: ignore[union-attr]
    merged: dict[str, Any] = merge_patch(template, plain)
    for name, items in lists.items():
        merged["spec"][name] = _merge_named(merged["spec"].get(name) or [], items)
    return merged


def _merge_named(target: list[Any], patch: list[Any]) -> list[Any]:
    patches = {item["name"]: item for item in patch if isinstance(item, Mapping) and "name" in item}
    merged = [merge_patch(item, patches.pop(item["name"], {})) for item in target]
    return merged + [merge_patch({}, item) for item in patches.values()]
