"""Load a recipe from YAML and explain every mistake in one line."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import (
    ValidationError,
)

from glprune.errors import RecipeError
from glprune.schema.recipe import (
    Recipe,
    Section,
    _nearest_line,
)
from glprune.schema.strict_yaml import MAX_DEPTH, parse, read_text


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: A YAML file.
        overrides: ``key=value`` texts as ``--set`` takes them, such as ``train.lr=1e-2``; the
            value is read as YAML.

    Raises:
        RecipeError: One line with file, line, key and the mend.
    """
    source = Path(path)
    text = read_text(source)
    tree, lines = parse(text, str(source))
    for override in overrides:
        _override(tree, override)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_explain(error, source, lines, tree, overrides)) from None
    recipe._source, recipe._lines = source, lines
    recipe._sha256 = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    return recipe


def recipe_errors(path: str | Path) -> list[str]:
    """Every mistake of a recipe as ``file:line: what and how to mend it``; empty where it is right.

    No data and no model is read, and no PyTorch is needed.
    """
    source = Path(path)
    try:
        tree, lines = parse(read_text(source), str(source))
        Recipe.model_validate(tree)
    except RecipeError as error:
        return [str(error)]
    except ValidationError as error:
        return [
            f"{source}:{_nearest_line(lines, _place(loc, message)) or 1}: {message}"
            for loc, message in _problems(error, tree)
        ]
    return []


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "glprune recipe"} | schema


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        raise RecipeError(f"--set {text[:80]}: write it as key=value, such as train.lr=1e-2.")
    wrapped, _ = parse(f"value: {value}", f"--set {key.strip()}")
    if len(wrapped) > 1:
        raise RecipeError(f"--set {key.strip()}: the value goes on as another key; give each a --set.")
    node = tree
    for part in parts[:-1]:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    node[parts[-1]] = wrapped["value"]


def _explain(
    error: ValidationError,
    source: Path,
    lines: Mapping[tuple[Any, ...], int],
    tree: Mapping[str, Any],
    overrides: Sequence[str],
) -> str:
    """One line: where the first mistake is, what it is, the mend, and how many more there are."""
    problems = _problems(error, tree)
    loc, message = _place(*problems[0]), problems[0][1]
    dotted = ".".join(map(str, loc))
    changed = next(
        (o.partition("=")[0].strip() for o in overrides if dotted.startswith(o.partition("=")[0].strip())),
        None,
    )
    place = f"--set {changed}" if changed else f"{source}:{_nearest_line(lines, loc) or 1}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place}: {message}{more}"


def _place(loc: tuple[Any, ...], message: str) -> tuple[Any, ...]:
    """The place of a mistake; sections that contradict each other name the key themselves."""
    return loc or tuple(re.split(r"[.:\s]", message)[:2])


def _problems(error: ValidationError, tree: Mapping[str, Any]) -> list[tuple[tuple[Any, ...], str]]:
    """Every distinct mistake with its place; the branches of a union count once."""
    found: dict[tuple[Any, ...], str] = {}
    for item in error.errors():
        loc = _keys(item["loc"], tree, missing=item["type"] == "missing")
        message = _sentence(item, loc)
        if loc in found and found[loc] != message:
            message = _union_sentence(found[loc], message)
        found[loc] = message
    return list(found.items())


def _keys(loc: tuple[Any, ...], tree: Any, missing: bool) -> tuple[Any, ...]:
    """The keys of a place in the recipe; pydantic puts the branches of unions between them."""
    keys, node = [], tree
    for part in loc:
        inside = part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)
        if inside:
            keys.append(part)
            node = node[part]
    return (*keys, loc[-1]) if missing else tuple(keys)


def _union_sentence(first: str, second: str) -> str:
    head, _, wanted = first.partition(" should be ")
    return f"{head} should be {wanted.rstrip('.').split(', not ')[0]} or {second.partition(' should be ')[2]}"


def _sentence(item: Any, loc: tuple[Any, ...]) -> str:
    dotted = ".".join(map(str, loc)) or "the recipe"
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(loc)
    if kind == "missing":
        return f"{dotted} is missing; add it."
    if kind == "value_error":
        prefix = f"{dotted}: " if loc else ""
        return f"{prefix}{context['error']}."
    wanted = _WANTED.get(kind)
    if kind == "string_pattern_mismatch":
        wanted = _PATTERNS.get(str(loc[-1]), "a plain name")
    if wanted is None:
        wanted = str(item["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    wanted = wanted.format(**{k: v for k, v in context.items() if isinstance(v, str | int | float)})
    return f"{dotted} should be {wanted}, not {_short(value)}."


_SHARE = "a share above 0 such as 30%"
_PATTERNS = {
    "factory": "'package.module:function' or 'file.py:function'",
    **dict.fromkeys(("parameters", "macs", "latency"), _SHARE),
}
_WANTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "literal_error": "{expected}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "non-empty text",
    "too_short": "a list of at least {min_length}",
    "finite_number": "a finite number",
}


def _unknown_key(loc: tuple[Any, ...]) -> str:
    section = _section(loc[:-1])
    keys = [field.alias or name for name, field in section.model_fields.items()] if section else []
    close = difflib.get_close_matches(str(loc[-1]), keys, n=1, cutoff=0.5)
    guess = f" Did you mean '{close[0]}'?" if close else ""
    listed = f" Keys: {', '.join(keys)}." if keys else ""
    return f"{'.'.join(map(str, loc))} is not a key.{guess}{listed}"


def _section(loc: tuple[Any, ...]) -> type[Section] | None:
    """The section a place of the recipe belongs to."""
    section: type[Section] = Recipe
    for part in loc:
        if isinstance(part, int):
            continue
        by_key = {field.alias or name: field for name, field in section.model_fields.items()}
        if part not in by_key:
            return None
        following = next(_sections_in(by_key[part].annotation), None)
        if following is None:
            return None
        section = following
    return section


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
