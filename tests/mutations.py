"""Recipes and reports changed at random: each change is decided by answers to ``choose(n)``.

``choose(n)`` answers 0..n-1, so that hypothesis, atheris or a list of numbers can drive the same changes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glprune.audit.diff import compare
from glprune.audit.explain import explain
from glprune.audit.parsed_bundle import read_report
from glprune.errors import GlpruneError
from glprune.report.html import render_html
from glprune.report.markdown import render_markdown
from glprune.schema import bundle as bundles
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.strict_yaml import parse

Choose = Callable[[int], int]

WHOLE = """\
version: 2
task: binary
model:
  factory: "networks.py:build"
  arguments: {width: 3, names: [a, 1, 2.5, true]}
  inputs:
  - {name: features, axis: 1, columns: ["a*", b], dtype: float}
  output: logits
  prediction: 0
  outputs: [prediction]
data:
  file: data.csv
  split: {train: 0.6, valid: 0.2, test: 0.2, stratify: true}
  target: y
  features: ["a*", b]
  exclude: [c]
  feature_groups: {pair: ["a*", b]}
  classes: ["no", "yes"]
  standardize: train
penalty: {inputs: {strength: 1}, hidden: {strength: 0.5, layers: {"0": 2}}, kind: group_mcp, gamma: 1.5,
          weights: size, input_strengths: [0.3, 1]}
target: {max_features: 2, max_hidden: 3}
train: {optimizer: sgd, lr: 1e-2, momentum: 0.5, batch_size: all, epochs: 3, n_stages: 2}
refit: {epochs: 0, start: best, dropout: "off"}
export: {signature: original, opset: 18, dynamic_axes: {features: {2: n}}}
stability: {n_resamples: 2, subsample: 0.5}
workers: {engine: local, processes: 1}
policy:
  must_drop: [d]
  must_keep: [b]
  derived_from: {b: [e, f]}
  protected: [b]
  bins: {b: [0, 1.5]}
  reason_codes: {b: "x: y"}
report:
  title: "A # title"
  purpose: |
    of two
    lines
seed: 7
"""
_TREE = parse(WHOLE, "")[0]

_TOKENS = (
    ": ", "- ", "? ", "&a ", "*a", "<<: ", "!!python/object:os.system ", "!x ", "|\n", ">-\n", "\t", "%YAML 1.1\n",
    "---\n", "...\n", "{", "}", "[", "]", '"', "'", "#", "\\", "\\ud800", "\0", ".nan", ".inf", "1e999", "0x_",
    "2020-99-99", "~", "\r", "\x85", "\u2028", "\ufeff", "\U0001f642", ",", "\n", "\n  ", "null", "true", "-" * 30,
    "[" * 30, "9" * 30, "NaN", "Infinity", "\\u0000", "e", "-", "0",
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**40, 0.5, -0.0, 1e308, 5e-324, "", "a", "\0", "\ud800", "<script>",
    "[red]", "\x1b[2J", "../x", "0" * 64, "sha256:" + "0" * 64, [], {}, [[]], [0], ["a", "a"], {"": 0}, {"a": {"a": []}},
)  # fmt: skip


def altered(value: Any, choose: Choose) -> Any:
    """A JSON value with one part of it replaced, dropped, doubled, renamed or moved."""
    whole = [copy.deepcopy(value)]
    parent: Any = whole
    key: Any = 0
    while isinstance(parent[key], dict | list) and parent[key] and choose(8):
        parent = parent[key]
        keys = list(parent) if isinstance(parent, dict) else range(len(parent))
        key = keys[choose(len(keys))]
    match choose(6):
        case 0:
            parent[key] = [parent[key]] * choose(3)
        case 1 if parent is not whole:
            del parent[key]
        case 2 if isinstance(parent, dict):
            parent[f"{key}x" if choose(2) else ""] = parent.pop(key)
        case 3 if isinstance(parent, list):
            parent.insert(choose(len(parent) + 1), copy.deepcopy(parent[key]))
        case 4 if isinstance(parent[key], int | float):
            parent[key] = (-parent[key], parent[key] + 1, parent[key] * 1000, float(parent[key]))[choose(4)]
        case _:
            parent[key] = copy.deepcopy(ODD[choose(len(ODD))])
    return whole[0]


def garbled(raw: bytes, choose: Choose) -> bytes:
    """Bytes with a part cut out, doubled, overwritten, or a token put in."""
    at = choose(len(raw) + 1)
    end = min(len(raw), at + 1 + choose(40))
    match choose(5):
        case 0:
            return raw[:at]
        case 1:
            return raw[:at] + raw[end:]
        case 2:
            return raw[:end] + raw[at:]
        case 3:
            return raw[:at] + bytes([choose(256)]) + raw[at + 1 :]
    token = _TOKENS[choose(len(_TOKENS))].encode("utf-8", "surrogatepass")
    return raw[:at] + token + raw[at:]


def recipe_text(choose: Choose) -> bytes:
    """A recipe, nearly."""
    raw = WHOLE.encode()
    if choose(3) == 0:
        tree = _TREE
        for _ in range(1 + choose(3)):
            tree = altered(tree, choose)
        raw = json.dumps(tree).encode()
    for _ in range(choose(4)):
        raw = garbled(raw, choose)
    return raw


def check_recipe(raw: bytes, folder: Path) -> bool:
    """Read a recipe: it is refused in one line, or says the same when it is written and read again.

    Returns:
        Whether it was read.
    """
    path = folder / "recipe.yaml"
    path.write_bytes(raw)
    try:
        recipe = load_recipe(path)
    except GlpruneError as error:
        one_line(error)
        return False
    again = folder / "again.yaml"
    again.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(again).model_dump() == recipe.model_dump()
    return True


def report_text(base: bytes, choose: Choose) -> bytes:
    """A report, nearly."""
    value = json.loads(base)
    for _ in range(choose(4)):
        value = altered(value, choose)
    raw = json.dumps(value).encode()
    return garbled(raw, choose) if choose(5) == 4 else raw


def check_report(raw: bytes, bundle: Path) -> bool:
    """Read, explain, compare and render a bundle whose report is this: refused in one line, or told.

    Rendering may find that the report contradicts itself in any way, which the command says.
    """
    (bundle / bundles.REPORT).write_bytes(raw)
    try:
        report = read_report(bundle)
    except GlpruneError as error:
        one_line(error)
        return False
    json.dumps(compare(report, report))
    for feature in report.features[:2]:
        json.dumps(explain(report, feature.name))
    for render in (render_markdown, lambda r: render_html(r, pictures=False)):
        try:
            page = render(report)
        except Exception:
            continue
        page.encode("utf-8")
        assert "<script" not in page
        assert "\x1b" not in page
    return True


def one_line(error: GlpruneError) -> None:
    """A message says something, and is one line when it is printed."""
    assert " ".join(str(error).split())
