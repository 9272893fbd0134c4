"""JSON schemas of the configuration files, for completion and validation in editors.

`python -m bnstudy.config.json_schemas` writes them to docs/schema/: one for each group that has
files, and config.json for files that set keys of several groups. A comment at the top of each file
in conf/ refers to its schema, in the syntax of `yaml-language-server`.
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

_DEFAULTS_LIST = {"description": "Hydra's list of files to begin with.", "type": "array"}
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
    groups = dict(_find_groups(Config))
    for model in groups.values():
        definition = definitions[model.__name__]
        if issubclass(model, ChosenGroup):
            definition["allOf"] = _restrict_keys(model, list(definition["properties"]))
    for group, key in PER_NORM_OPTIONS:
        value = definitions[groups[group].__name__]["properties"][key]
        alternatives = _list_alternatives(value)
        per_norm = {"type": "object", "additionalProperties": {"anyOf": alternatives}}
        value["anyOf"] = [*alternatives, per_norm]
    for definition in (config, *definitions.values()):
        definition.pop("title")
        definition.pop("required", None)
        properties = definition["properties"].items()
        definition["properties"] = {key: _allow_open(value) for key, value in properties}
    definitions["Open"] = _OPEN
    config["properties"]["hydra"] = _HYDRA
    contents = {
        group: definitions[model.__name__]
        for group, model in groups.items()
        if (CONFIG_FOLDER / group).is_dir()
    }
    return {
        name: _make_file_schema(content, definitions)
        for name, content in {**contents, "config": config}.items()
    }


def write_json_schemas() -> None:
    """Write the JSON schemas to docs/schema/."""
    SCHEMA_FOLDER.mkdir(parents=True, exist_ok=True)
    for name, schema in json_schemas().items():
        (SCHEMA_FOLDER / f"{name}.json").write_text(json.dumps(schema, indent=2) + "\n")


def _find_groups(model: type[Group]) -> Iterator[tuple[str, type[Group]]]:
    """Yield the keys and models of all groups inside a group, at any depth."""
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            yield key, field.annotation
            yield from _find_groups(field.annotation)


def _restrict_keys(model: type[ChosenGroup], keys: list[str]) -> list[Schema]:
    """Make the conditions that allow only the keys of the choice, or all keys if none is made."""
    chosen_by = model.chosen_by
    conditions: list[Schema] = [
        {
            "if": {"properties": {chosen_by: {"const": choice}}, "required": [chosen_by]},
            "then": {"propertyNames": {"enum": [chosen_by, *known, "defaults"]}},
        }
        for choice, known in model.keys_of.items()
    ]
    no_choice = {"not": {"required": [chosen_by]}}
    all_keys = {"propertyNames": {"enum": [*keys, "defaults"]}}
    return [*conditions, {"if": no_choice, "then": all_keys}]


def _list_alternatives(value: Schema) -> list[Schema]:
    """List the schemas of which a value must match one, without their title and description."""
    texts = ("title", "description")
    single = {key: content for key, content in value.items() if key not in texts}
    alternatives: list[Schema] = value.get("anyOf", [single])
    return alternatives


def _allow_open(value: Schema) -> Schema:
    """Extend the schema of a value, and of the values it contains, to allow open values."""
    alternatives = _list_alternatives(value)
    for alternative in alternatives:
        for key in {"items", "additionalProperties"} & alternative.keys():
            alternative[key] = _allow_open(alternative[key])
    about = {"description": value["description"]} if "description" in value else {}
    return {**about, "anyOf": [*alternatives, {"$ref": "#/$defs/Open"}]}


def _make_file_schema(content: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """Make the schema of a file from the schema of its content."""
    properties = {"defaults": _DEFAULTS_LIST, **content["properties"]}
    needed = _find_definitions(content, definitions)
    return {"$schema": DRAFT, **content, "properties": properties, "$defs": needed}


def _find_definitions(schema: Schema, definitions: Mapping[str, Schema]) -> dict[str, Schema]:
    """Find the definitions that a schema refers to, directly or through other definitions."""
    text = json.dumps(schema)
    needed: dict[str, Schema] = {}
    for name, definition in definitions.items():
        if f'"#/$defs/{name}"' in text:
            needed |= {name: definition, **_find_definitions(definition, definitions)}
    return needed


if __name__ == "__main__":
    write_json_schemas()
