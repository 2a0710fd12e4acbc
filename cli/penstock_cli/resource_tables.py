"""The tables of docs/resources.md: every field of the custom resources, and the rules between them, from their CRD schemas.

`reference` writes them into the page. It knows structural schemas, not pydantic.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from penstock_core.api import ModelService, WorkerPool
from penstock_operator.crds import schema_of

Schema = Mapping[str, Any]


def fields_table(schema: Schema, path: str) -> str:
    """Markdown rows `| field | type | default | meaning |` of all fields below a structural schema, parents before children."""
    rows = [
        f"| `{name}` | {_shown_type(one)} | {default} | {one['description']} |\n"
        for name, one, default in _below(schema, path)
        if not name.endswith("[]")
    ]
    return "| field | type | default | meaning |\n|---|---|---|---|\n" + "".join(rows)


def rules_list(schema: Schema, path: str) -> str:
    """Markdown items: where a rule stands, and what is answered when it is broken."""
    places = [(path, schema), *((name, one) for name, one, _ in _below(schema, path))]
    return "".join(f"- `{name}`: {rule['message']}\n" for name, one in places for rule in one.get("x-kubernetes-validations", ()))


def _below(schema: Schema, path: str) -> Iterator[tuple[str, Schema, str]]:
    """(path, schema, default in words) of every field below; the items of a list as `path[]`."""
    for name, one in schema.get("properties", {}).items():
        yield f"{path}.{name}", one, "required" if name in schema.get("required", ()) else _shown_default(one.get("default"))
        yield from _below(one, f"{path}.{name}")
        if "items" in one:
            yield f"{path}.{name}[]", one["items"], ""
            yield from _below(one["items"], f"{path}.{name}[]")


def _shown_type(one: Schema) -> str:
    """`integer, 1 to 64`, `text, at most 36`, or the allowed words."""
    if "enum" in one:
        return ", ".join(f"`{value}`" for value in one["enum"])
    written: str = one["type"]
    kind = {"string": "text", "array": "list"}.get(written, written)
    low, high = one.get("minimum"), one.get("maximum", one.get("maxLength", one.get("maxItems")))
    if low is not None and high is not None:
        return f"{kind}, {low:,} to {high:,}"
    return f"{kind}, at most {high:,}" if high is not None else kind


def _shown_default(value: object) -> str:
    return "–" if value in (None, "") or isinstance(value, list | dict) else f"`{json.dumps(value)}`"


def _part(kind: type[ModelService] | type[WorkerPool], name: str) -> Schema:
    found: Schema = schema_of(kind)["properties"][name]
    return found


def _own(name: str) -> Schema:
    """That part of a WorkerPool, without the fields that a ModelService or one of its pools has too."""
    service = _part(ModelService, name)["properties"]
    known = {**service, **service["pools"]["items"]["properties"]} if name == "spec" else service
    whole = _part(WorkerPool, name)
    return {**whole, "properties": {field: one for field, one in whole["properties"].items() if field not in known or field == "replicas"}}


def _model_service_rules() -> str:
    whole = schema_of(ModelService)
    named = {key: value for key, value in whole.items() if key != "properties"}
    return rules_list(named, "metadata.name") + rules_list(whole["properties"]["spec"], "spec")


TABLES: dict[str, Callable[[], str]] = {
    "ModelService spec": lambda: fields_table(_part(ModelService, "spec"), "spec"),
    "ModelService rules": _model_service_rules,
    "ModelService status": lambda: fields_table(_part(ModelService, "status"), "status"),
    "WorkerPool spec": lambda: fields_table(_own("spec"), "spec"),
    "WorkerPool status": lambda: fields_table(_own("status"), "status"),
}
