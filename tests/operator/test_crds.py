"""From pydantic's JSON schema to a structural one: each rewriting by itself, and the committed files. No API server needed."""

from typing import Annotated, Any

import pytest
from penstock_operator.crds import files, main, structural
from pydantic import BaseModel, ConfigDict, Field, JsonValue

RULE: dict[str, JsonValue] = {"x-kubernetes-validations": [{"rule": "self.few <= 9", "message": "fewer"}]}


class Inner(BaseModel):
    """Described by its class."""

    few: int = 3


class Ruled(Inner):
    """With a rule."""

    model_config = ConfigDict(json_schema_extra=RULE)


class Outer(BaseModel):
    """All the shapes that need rewriting."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    plain: Inner = Inner()
    own: Inner
    """Described by its field,
    on two lines."""
    ruled: Ruled = Ruled()
    perhaps: Inner | None = None
    more: Annotated[int, Field(gt=0, lt=10)] = 1
    unique: set[str] = Field(default=set(), max_length=4)
    many: tuple[Inner, ...] = ()
    labels: dict[str, str] = Field(default={})
    anything: dict[str, Any] = Field(default={}, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})


class Either(BaseModel):
    """Not structural: one field of two types."""

    either: int | str


def schema_of(model: type[BaseModel], *, defaults: bool = True) -> dict[str, Any]:
    whole = model.model_json_schema()
    return structural(whole, whole.get("$defs", {}), defaults=defaults)["properties"]


def test_references_are_inlined_and_a_fields_own_text_wins() -> None:
    """On one line, as `kubectl explain` wraps it anew."""
    properties = schema_of(Outer)
    assert properties["plain"]["properties"] == {"few": {"type": "integer", "default": 3}}
    assert properties["plain"]["description"] == "Described by its class."
    assert properties["own"]["description"] == "Described by its field, on two lines."
    assert properties["many"]["items"]["properties"]["few"]["type"] == "integer"


def test_a_default_of_an_object_is_left_to_its_fields_unless_it_has_rules() -> None:
    """The API server judges a default by the rules before it fills in what is below."""
    properties = schema_of(Outer)
    assert properties["plain"]["default"] == {}
    assert properties["ruled"]["default"] == {"few": 3}
    assert "default" not in properties["own"]


def test_what_may_be_null_may_be_absent() -> None:
    """`anyOf [X, null]` is X, and no default."""
    assert schema_of(Outer)["perhaps"] == {
        "description": "Described by its class.",
        "type": "object",
        "properties": {"few": {"type": "integer", "default": 3}},
    }


def test_exclusive_bounds_are_said_with_booleans() -> None:
    """As OpenAPI 3.0 has it."""
    bounds = {"minimum": 0, "exclusiveMinimum": True, "maximum": 10, "exclusiveMaximum": True}
    assert schema_of(Outer)["more"] == {"type": "integer", "default": 1, **bounds}


def test_sets_and_maps_keep_their_meaning() -> None:
    """A set is a list of its own kind; a map says what its values are; free content is kept."""
    properties = schema_of(Outer)
    assert properties["unique"]["x-kubernetes-list-type"] == "set"
    assert "uniqueItems" not in properties["unique"]
    assert properties["labels"]["additionalProperties"] == {"type": "string"}
    assert properties["anything"] == {"type": "object", "default": {}, "x-kubernetes-preserve-unknown-fields": True}


def test_a_status_gets_no_defaults() -> None:
    """On any level."""
    assert "default" not in str(schema_of(Outer, defaults=False))


def test_what_cannot_be_said_structurally_is_an_error() -> None:
    """Not a silent loss: the message names the field."""
    with pytest.raises(ValueError, match=r"\.either may be one of 2 types"):
        schema_of(Either)
    with pytest.raises(ValueError, match="contains"):
        structural({"type": "array", "contains": {"type": "string"}}, {})


def test_the_committed_files_are_what_the_types_say(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """What `make check` asks; and an edit of a file is noticed, then undone by `make docs`."""
    assert main(["--check"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    edited = next(iter(files()))
    edited.write_text(edited.read_text().replace("maxLength: 36", "maxLength: 37"))
    assert main(["--check"]) == 1
    assert str(edited) in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0
