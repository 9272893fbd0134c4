"""JSON schemas of the configuration files, for completion and validation in editors.

`python -m bnstudy.config.json_schemas` writes them to docs/schema/: one for each group, and
config.json for files that set keys of several groups. A comment at the top of each file in conf/
refers to its schema, in the syntax of `yaml-language-server`.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.schema import ChosenGroup, Config, Group
from bnstudy.terms import PER_NORM_OPTIONS

# Files refer to their schemas by relative paths, in a checkout and in a wheel.
SCHEMA_FOLDER = CONFIG_FOLDER.parent / "docs" / "schema"
DRAFT = "http://json-schema.org/draft-07/schema#"  # best supported by yaml-language-server

Schema = dict[str, Any]

_DEFAULTS = {"description": "Hydra's list of files to begin with.", "type": "array"}
_HYDRA = {"description": "Hydra's own configuration.", "type": "object"}
_OPEN = {
    "description": "Interpolation such as ${seed}, or ??? for a value that has to be given.",
    "type": "string",
    "pattern": r"\$\{|^\?\?\?$",
}


def json_schemas() -> dict[str, Schema]:
    """Make the JSON schemas of the configuration files.

    A file may omit any key. In place of a value, it may contain an interpolation, `???`, or one
    value per norm for the options that allow it.

    Returns:
        Schema of each group's files by the group's name, and of whole configurations as `config`.
    """
    config = Config.model_json_schema()
    definitions: dict[str, Schema] = config.pop("$defs")
    groups = dict(_groups(Config))
    for group, model in groups.items():
        definition = definitions[model.__name__]
        if issubclass(model, ChosenGroup):
            definition["allOf"] = _conditions(model, list(definition["properties"]))
        for key in (key for each, key in PER_NORM_OPTIONS if each == group):
            value = definition["properties"][key]
            one = _alternatives(value)
            each = {**one[0]} if len(one) == 1 else {"anyOf": one}
            value["anyOf"] = [*one, {"type": "object", "additionalProperties": each}]
    for definition in (config, *definitions.values()):
        definition.pop("title")
        definition.pop("required", None)
        properties = definition["properties"].items()
        definition["properties"] = {key: _or_open(value) for key, value in properties}
    definitions["Open"] = _OPEN
    config["properties"]["hydra"] = _HYDRA
    contents = {group: definitions[groups[group].__name__] for group in groups if _has_file(group)}
    return {
        name: _file_schema(content, definitions)
        for name, content in {**contents, "config": config}.items()
    }


def write() -> None:
    """Write the JSON schemas to docs/schema/."""
    SCHEMA_FOLDER.mkdir(parents=True, exist_ok=True)
    for name, schema in json_schemas().items():
        (SCHEMA_FOLDER / f"{name}.json").write_text(json.dumps(schema, indent=2) + "\n")


def _groups(model: type[Group]) -> Iterator[tuple[str, type[Group]]]:
    """Yield the keys and models of all groups inside a group, at any depth."""
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            yield key, field.annotation
            yield from _groups(field.annotation)


def _has_file(group: str) -> bool:
    return (CONFIG_FOLDER / group).is_dir()


def _conditions(model: type[ChosenGroup], keys: list[str]) -> list[Schema]:
    """Make the conditions that restrict the keys to those of the choice, if one is made."""
    chosen_by = model.chosen_by
    conditions: list[Schema] = [
        {
            "if": {"properties": {chosen_by: {"const": choice}}, "required": [chosen_by]},
            "then": {"propertyNames": {"enum": [chosen_by, *known, "defaults"]}},
        }
        for choice, known in model.keys_of.items()
    ]
    without = {"not": {"required": [chosen_by]}}
    return [*conditions, {"if": without, "then": {"propertyNames": {"enum": [*keys, "defaults"]}}}]


def _alternatives(value: Schema) -> list[Schema]:
    words = ("title", "description")
    alone = {key: content for key, content in value.items() if key not in words}
    found: list[Schema] = value.get("anyOf", [alone])
    return found


def _or_open(value: Schema) -> Schema:
    """Extend the schema of a value, and of the values it contains, to allow open values."""
    alternatives = _alternatives(value)
    for alternative in alternatives:
        for part in {"items", "additionalProperties"} & alternative.keys():
            alternative[part] = _or_open(alternative[part])
    about = {"description": value["description"]} if "description" in value else {}
    return {**about, "anyOf": [*alternatives, {"$ref": "#/$defs/Open"}]}


def _file_schema(content: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """Make the schema of a file from the schema of its content."""
    properties = {"defaults": _DEFAULTS, **content["properties"]}
    needed = _needed(content, definitions)
    return {"$schema": DRAFT, **content, "properties": properties, "$defs": needed}


def _needed(schema: Schema, definitions: Mapping[str, Schema]) -> dict[str, Schema]:
    """Find the definitions that a schema refers to, directly or through other definitions."""
    text = json.dumps(schema)
    needed: dict[str, Schema] = {}
    for name, definition in definitions.items():
        if f'"#/$defs/{name}"' in text:
            needed |= {name: definition, **_needed(definition, definitions)}
    return needed


if __name__ == "__main__":
    write()
