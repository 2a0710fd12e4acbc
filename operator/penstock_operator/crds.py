"""CustomResourceDefinitions, written from the typed resources in `penstock_core.api`: `manifests/crds/*.yaml`, and the chart's.

`make docs` writes the files, `make check` runs this with `--check` and fails when one differs. The API server takes
structural schemas only, so pydantic's JSON schema is rewritten (`structural`); a keyword that has no counterpart is an
error, not a silent loss. It knows the checkout's layout for its files and nothing of the reconciler.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from penstock_core.api import KINDS, ModelService, WorkerPool
from penstock_core.api_parts import rules_of
from penstock_core.api_terms import DNS_LABEL, DNS_LABEL_WORDS, GROUP, VERSION, Kind, Rule

Schema = dict[str, Any]

FOLDERS = (Path("manifests/crds"), Path("charts/penstock/definitions"))
"""For kubectl, and for Helm, whose charts hold no file from outside."""
_HEADER = "# Written by `make docs` from core/penstock_core/api.py; edits are overwritten.\n"
_NAMED_WELL = Rule(f"self.metadata.name.matches('{DNS_LABEL}')", f"metadata.name becomes part of other names: {DNS_LABEL_WORDS}")

_KEPT = (
    *("description", "type", "format", "enum", "default", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "pattern", "minItems", "maxItems", "required", "properties", "items", "additionalProperties"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-validations"),
)
"""Keywords of a structural schema that we use, in the order in which they are written."""
_DROPPED = frozenset({"title", "$defs"})


def structural(schema: Mapping[str, Any], defs: Mapping[str, Schema], *, defaults: bool = True, path: str = "") -> Schema:
    """A structural schema of the same values: `$ref` inlined, null taken out, defaults of objects left to their fields.

    `defaults=False` leaves all defaults out, as fits a status. Raises ValueError for what cannot be said structurally.
    """
    found = _resolved(schema, defs, path)
    if found.pop("uniqueItems", False):
        found["x-kubernetes-list-type"] = "set"
    for bound, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in found:
            found |= {inclusive: found[bound], bound: True}
    if found.get("additionalProperties") in (True, False):
        del found["additionalProperties"]
    if not defaults or found.get("default", ...) is None:
        found.pop("default", None)
    if "description" in found:
        found["description"] = re.sub(r"\s+", " ", found["description"])
    below = {name: structural(one, defs, defaults=defaults, path=f"{path}.{name}") for name, one in found.get("properties", {}).items()}
    if below:
        found["properties"] = below
        if "default" in found:
            found["default"] = _object_default(found)
    for inner in ("items", "additionalProperties"):
        if inner in found:
            found[inner] = structural(found[inner], defs, defaults=defaults, path=f"{path}[]")
    unknown = set(found) - set(_KEPT) - _DROPPED
    if unknown or "type" not in found:
        raise ValueError(
            f"{path or '.'} has {', '.join(sorted(unknown)) or 'no type'}; allowed: one type, and of keywords {', '.join(_KEPT)}"
        )
    return {key: found[key] for key in _KEPT if key in found}


def _object_default(found: Schema) -> Schema:
    """Empty, and the API server fills in the fields' own. But it judges a default by the rules before it fills it in."""
    if "x-kubernetes-validations" not in found:
        return {}
    return {name: one["default"] for name, one in found["properties"].items() if "default" in one}


def _resolved(schema: Mapping[str, Any], defs: Mapping[str, Schema], path: str) -> Schema:
    """The schema itself where it refers to another or allows null; what stands beside the reference wins."""
    found = dict(schema)
    if "anyOf" in found:
        some = [one for one in found.pop("anyOf") if one.get("type") != "null"]
        if len(some) != 1:
            raise ValueError(f"{path} may be one of {len(some)} types; allowed: one type, or one and null")
        found = {**some[0], **found}
    if "$ref" in found:
        found = {**defs[found.pop("$ref").rpartition("/")[2]], **found}
    return _resolved(found, defs, path) if "$ref" in found or "anyOf" in found else found


def schema_of(kind: type[ModelService] | type[WorkerPool]) -> Schema:
    """The structural schema of a kind: its spec and status, and how long its name may be."""
    whole = kind.model_json_schema(by_alias=True)
    defs, parts = whole["$defs"], whole["properties"]
    name = {"type": "string", "maxLength": kind.kind_facts.most_name_letters}
    return {
        "description": whole["description"],
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {"name": name}},
            "spec": structural(parts["spec"], defs, path="spec"),
            "status": structural(parts["status"], defs, defaults=False, path="status"),
        },
        **rules_of(_NAMED_WELL),
    }


def definition(kind: type[ModelService] | type[WorkerPool]) -> Schema:
    """The whole CustomResourceDefinition of a kind."""
    facts: Kind = kind.kind_facts
    subresources: Schema = {"status": {}}
    if facts.scale is not None:
        desired, observed, selector = facts.scale
        subresources["scale"] = {"specReplicasPath": desired, "statusReplicasPath": observed, "labelSelectorPath": selector}
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": subresources,
        "additionalPrinterColumns": [
            {"name": one.name, "type": one.type, "jsonPath": one.path, "description": one.description} for one in facts.columns
        ],
        "schema": {"openAPIV3Schema": schema_of(kind)},
    }
    names = {
        "kind": facts.name,
        "listKind": f"{facts.name}List",
        "plural": facts.plural,
        "singular": facts.name.lower(),
        "shortNames": [facts.short],
        "categories": ["penstock"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{facts.plural}.{GROUP}", "annotations": {"helm.sh/resource-policy": "keep"}},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def files() -> dict[Path, str]:
    """Every file that is written, with its text; paths are relative to the checkout."""
    return {
        folder / f"{kind.kind_facts.plural}.yaml": _HEADER
        + yaml.safe_dump(definition(kind), sort_keys=False, width=130, allow_unicode=True)
        for kind in KINDS
        for folder in FOLDERS
    }


def main(arguments: Sequence[str]) -> int:
    """Write the files, or with `--check` say which are not as they would be written; gives the exit status."""
    stale = {path: text for path, text in files().items() if not path.is_file() or path.read_text(encoding="utf-8") != text}
    if stale and "--check" in arguments:
        sys.stderr.write(f"not what the code says: {', '.join(map(str, stale))}; run `make docs`\n")
        return 1
    for path, text in stale.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
