"""Load recipes from YAML and explain every mistake in one line."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from glprune.errors import RecipeError
from glprune.schema.recipe import Recipe, Section
from glprune.schema.recipe_rules import RuleError
from glprune.schema.strict_yaml import MAX_DEPTH, Lines, nearest_line, parse, read_text

Keys = tuple[Any, ...]
"""Path of a key in a recipe."""


@dataclass(frozen=True)
class _Mistake:
    """One mistake: the key it is about and the message."""

    keys: Keys
    message: str


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: A YAML file.
        overrides: Changes as ``key=value``, such as ``train.lr=1e-2``; the value is read as YAML.

    Raises:
        RecipeError: The recipe is wrong; the message gives file, line, key and fix in one line.
    """
    source = Path(path)
    text = read_text(source)
    tree, lines = parse(text, str(source))
    for override in overrides:
        _apply_override(tree, override)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_explain(_mistakes(error, tree), source, lines, overrides)) from None
    recipe.set_source(source, "sha256:" + hashlib.sha256(text.encode()).hexdigest(), lines)
    return recipe


def recipe_errors(path: str | Path) -> list[str]:
    """Return every mistake of a recipe as ``file:line: message``; an empty list if it is valid.

    Neither data nor model is read, and PyTorch is not needed.
    """
    source = Path(path)
    try:
        tree, lines = parse(read_text(source), str(source))
        Recipe.model_validate(tree)
    except RecipeError as error:
        return [str(error)]
    except ValidationError as error:
        return [
            f"{source}:{nearest_line(lines, mistake.keys) or 1}: {mistake.message}"
            for mistake in _mistakes(error, tree)
        ]
    return []


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for editors."""
    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "glprune recipe"} | schema


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Set a key of the tree from a text ``key=value``."""
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        raise RecipeError(f"--set {override[:80]}: write it as key=value, such as train.lr=1e-2.")
    wrapped, _ = parse(f"value: {value}", f"--set {key.strip()}")
    if len(wrapped) > 1:
        raise RecipeError(f"--set {key.strip()}: the value holds a second key; use one --set for each key.")
    node = tree
    for part in parts[:-1]:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    node[parts[-1]] = wrapped["value"]


def _explain(mistakes: Sequence[_Mistake], source: Path, lines: Lines, overrides: Sequence[str]) -> str:
    """Describe the first mistake in one line, and say how many more there are."""
    first = mistakes[0]
    dotted = ".".join(map(str, first.keys))
    changed = (override.partition("=")[0].strip() for override in overrides)
    override = next((key for key in changed if dotted.startswith(key)), None)
    place = f"--set {override}" if override else f"{source}:{nearest_line(lines, first.keys) or 1}"
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{place}: {first.message}{more}"


def _mistakes(error: ValidationError, tree: Mapping[str, Any]) -> list[_Mistake]:
    """Collect the distinct mistakes; the branches of a union give one together."""
    found: dict[Keys, str] = {}
    for item in error.errors():
        keys = _keys(item["loc"], tree, missing=item["type"] == "missing")
        message = _message(item, keys)
        broken_rule = item.get("ctx", {}).get("error")
        if isinstance(broken_rule, RuleError):
            keys = (*keys, *broken_rule.keys)
        if keys in found and found[keys] != message:
            message = _join_alternatives(found[keys], message)
        found[keys] = message
    # a mistake inside a value says more than that the value fits another branch of a union neither
    outer = {keys[:length] for keys in found for length in range(len(keys))}
    return [_Mistake(keys, message) for keys, message in found.items() if keys not in outer]


def _keys(loc: Keys, tree: Any, missing: bool) -> Keys:
    """Return the keys of a location; pydantic puts the branches of unions between them."""
    keys: list[Any] = []
    node = tree
    for part in loc:
        inside = part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)
        if inside:
            keys.append(part)
            node = node[part]
    return (*keys, loc[-1]) if missing else tuple(keys)


def _join_alternatives(first: str, second: str) -> str:
    """Join the messages of two branches of a union: "should be A or B"."""
    head, _, expected = first.partition(" should be ")
    return (
        f"{head} should be {expected.rstrip('.').split(', not ')[0]} or {second.partition(' should be ')[2]}"
    )


def _message(item: Any, keys: Keys) -> str:
    """Describe one error of pydantic in a sentence."""
    dotted = ".".join(map(str, keys)) or "the recipe"
    error_type, value, context = item["type"], item["input"], item.get("ctx", {})
    if error_type == "extra_forbidden":
        return _unknown_key(keys)
    if error_type == "missing":
        return f"{dotted} is missing; add it."
    if error_type == "value_error":
        prefix = f"{dotted}: " if keys else ""
        return f"{prefix}{context['error']}."
    expected = _EXPECTED.get(error_type)
    if error_type == "string_pattern_mismatch":
        expected = _PATTERNS.get(str(keys[-1]), "a plain name")
    if expected is None:
        expected = str(item["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    expected = expected.format(**{k: v for k, v in context.items() if isinstance(v, str | int | float)})
    remedy = "; some keys have new names, which the changelog lists" if keys == ("version",) else ""
    return f"{dotted} should be {expected}, not {_shorten(value)}{remedy}."


_SHARE = "a share above 0 such as 30%"
_PATTERNS = {
    "factory": "'package.module:function' or 'file.py:function'",
    **dict.fromkeys(("parameters", "macs", "latency"), _SHARE),
}
_EXPECTED = {
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


# keys of version 1, for messages alone: they are refused
_RENAMED = {
    "penalty.balance": "penalty.input_strengths",
    "penalty.concavity": "penalty.gamma",
    "penalty.within": "penalty.l1_ratio",
    "refit.halvings": "refit.max_lr_halvings",
    "stability.resamples": "stability.n_resamples",
    "stability.share": "stability.subsample",
    "target.multiple": "target.round_to",
    "train.between": "train.stage_refit_epochs",
    "train.bound": "train.constrain_unpenalised",
    "train.halvings": "train.max_lr_halvings",
    "train.points": "train.n_lambdas",
    "train.polish": "train.full_batch_steps",
    "train.stages": "train.n_stages",
}


def _unknown_key(keys: Keys) -> str:
    """Describe an unknown key: its present name, or the nearest known one and all keys of its section."""
    dotted = ".".join(map(str, keys))
    if dotted in _RENAMED:
        return f"{dotted} is named {_RENAMED[dotted]} since version 2 of the recipe; rename it."
    section = _section_of(keys[:-1])
    known = list(_fields(section)) if section else []
    close = difflib.get_close_matches(str(keys[-1]), known, n=1, cutoff=0.5)
    guess = f" Did you mean '{close[0]}'?" if close else ""
    listed = f" Keys: {', '.join(known)}." if known else ""
    return f"{dotted} is not a key.{guess}{listed}"


def _section_of(keys: Keys) -> type[Section] | None:
    """Return the section that keys lead to."""
    section: type[Section] = Recipe
    for key in keys:
        if isinstance(key, int):
            continue
        fields = _fields(section)
        inner = next(_sections_in(fields[key].annotation), None) if key in fields else None
        if inner is None:
            return None
        section = inner
    return section


def _fields(section: type[Section]) -> dict[str, FieldInfo]:
    """Return the fields of a section by the keys that recipes use."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    """Yield the sections that a type annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
