"""Markdown reference of a pydantic model: every section, key, type, default, range and description."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, NoDefault

Schema = dict[str, Any]

_SCALARS = ["text", "integer", "number", "boolean"]

_LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minItems": "length ≥ {}",
    "maxItems": "length ≤ {}",
}
_TYPES = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
    "object": "mapping",
    "null": "null",
}


class _WithDefaults(GenerateJsonSchema):
    """pydantic's schema, in which defaults made by a factory are written out too."""

    def get_default_value(self, schema: Any) -> Any:
        if "default_factory" in schema and not schema.get("default_factory_takes_data"):
            return schema["default_factory"]()
        return schema.get("default", NoDefault)


def reference(model: type[BaseModel]) -> str:
    """The reference of a model and of every model in it, the outermost first."""
    schema = model.model_json_schema(by_alias=True, schema_generator=_WithDefaults)
    definitions: dict[str, Schema] = schema.get("$defs", {})
    lines = ["## Top level", *_table(schema, definitions)]
    for name, path in _sections(schema, definitions):
        section = definitions[name]
        lines += ["", f"## `{path}` {{ #{name.lower()} }}", ""]
        lines += [_prose(section.get("description", "")), *_table(section, definitions)]
    return "\n".join(lines)


def undescribed(model: type[BaseModel]) -> list[str]:
    """Keys whose meaning is written nowhere: neither on the key nor on the section it holds."""
    schema = model.model_json_schema(by_alias=True)
    places = {model.__name__: schema} | schema.get("$defs", {})
    return [
        f"{place}.{key}"
        for place, section in places.items()
        for key, value in section.get("properties", {}).items()
        if not value.get("description") and not (_links(value) or "const" in value)
    ]


def _sections(schema: Schema, definitions: dict[str, Schema]) -> Iterator[tuple[str, str]]:
    """Each definition once, with the path of keys that leads to it first, depth first."""
    seen: set[str] = set()

    def walk(section: Schema, path: str) -> Iterator[tuple[str, str]]:
        for key, value in section.get("properties", {}).items():
            many = "[]" if value.get("type") == "array" else ""
            for name in _links(value):
                if name not in seen:
                    seen.add(name)
                    yield name, f"{path}{key}{many}"
                    yield from walk(definitions[name], f"{path}{key}{many}.")

    return walk(schema, "")


def _table(section: Schema, definitions: dict[str, Schema]) -> list[str]:
    required = section.get("required", [])
    rows = [
        f"| `{key}`{{ .key }} | {_type(value)} | {_default(value, key in required)} "
        f"| {_meaning(value, definitions)} |"
        for key, value in section.get("properties", {}).items()
    ]
    return ["", "| Key | Type | Default | Meaning |", "|---|---|---|---|", *rows]


def _type(value: Schema) -> str:
    """The type of a value in words, with its range and a link where it is a section."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[section](#{name.lower()})"
    if "anyOf" in value:
        return _either([_type(part) for part in value["anyOf"]])
    if "const" in value:
        return _code(value["const"])
    if "enum" in value:
        return ", ".join(_code(choice) for choice in value["enum"])
    if "minimum" in value and value["minimum"] == value.get("maximum"):
        return _code(value["minimum"])
    kind = value.get("type")
    if kind == "array":
        inner = _type(value.get("items", {}))
        return f"list of {f'({inner})' if ' or ' in inner else inner}{_limits(value)}"
    if kind == "object":
        return _mapping(value)
    return f"{_TYPES.get(str(kind), 'any value')}{_limits(value)}"


def _mapping(value: Schema) -> str:
    inner = [value["additionalProperties"]] if isinstance(value.get("additionalProperties"), dict) else []
    inner += value.get("patternProperties", {}).values()
    return f"mapping to {_either([_type(part) for part in inner])}" if inner else "mapping"


def _either(kinds: list[str]) -> str:
    """Types of which a value has one: each once, null last, all kinds of scalars in one word."""
    kinds = list(dict.fromkeys(kinds))
    if set(_SCALARS) <= set(kinds):
        kinds = ["scalar", *(kind for kind in kinds if kind not in _SCALARS)]
    return " or ".join(sorted(kinds, key=lambda kind: kind == "null"))


def _limits(value: Schema) -> str:
    said = [text.format(_number(value[key])) for key, text in _LIMITS.items() if key in value]
    return f" ({', '.join(said)})" if said else ""


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _default(value: Schema, required: bool) -> str:
    if required:
        return "**required**"
    default = value.get("default")
    if isinstance(default, dict) and _links(value):
        return "its defaults"
    return _code(default)


def _meaning(value: Schema, definitions: dict[str, Schema]) -> str:
    """The key's own description, or the first sentence of the section it holds."""
    said = value.get("description", "")
    if not said and (names := _links(value)):
        said = definitions[names[0]].get("description", "").split("\n")[0]
    said = _prose(said)
    for choice in _choices(value):
        said = re.sub(rf"(?<![\w`]){re.escape(choice)}(?=:)", f"`{choice}`", said)
    return said if re.match(r"\S*[_:]", said) else said[:1].upper() + said[1:]


def _choices(value: Schema) -> list[str]:
    """The words a value is chosen from."""
    return [
        c for part in (value, *value.get("anyOf", [])) for c in part.get("enum", []) if isinstance(c, str)
    ]


def _links(value: Any) -> list[str]:
    """The definitions a value refers to, in order."""
    if isinstance(value, dict):
        own = [value["$ref"].rpartition("/")[2]] if "$ref" in value else []
        return own + [name for key, part in value.items() if key != "default" for name in _links(part)]
    return [name for part in value for name in _links(part)] if isinstance(value, list) else []


def _code(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return f"`{_cell(text)}`"


def _prose(text: str) -> str:
    """A docstring or description as one line of Markdown, with code marked as Markdown marks it."""
    text = re.sub(r":(?:mod|func|class|meth|attr):`~?([^`]*)`", r"`\1`", text)
    text = re.sub(r"\s*\n\s*", " ", text.replace("``", "`")).replace("*", r"\*")
    return _cell(re.sub(r"`[^`]*`", lambda found: found[0].replace(r"\*", "*"), text))


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
