"""Rewrite the API reference from docstrings: python -m tests.api."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from pydantic.features import FieldInfo

PAGE = Path(__file__).parent.parent / "examples" / "api.md"
MODULES = {
    "glprune": None,  # its __all__
    "glprune.training.penalties": [
        "Penalty",
        "GroupLasso",
        "SparseGroupLasso",
        "GroupMCP",
        "block_soft_threshold",
    ],
    "glprune.training.penalty_check": ["faults"],
    "glprune._plugins": ["load_plugin", "Plugin", "PluginError"],
    "glprune.integrations.triton_kserve": ["write_triton", "write_kserve", "triton_config", "v2_request"],
    "glprune.integrations.sklearn": ["GroupLassoPruner"],
    "glprune.report.plots": ["path_figure", "metric_figure"],
    "glprune.schema.bundle": ["FILES", "OPTIONAL"],
}
_SECTIONS = ("Args", "Returns", "Raises", "Attributes", "References", "Example", "Yields")


def page() -> str:
    """The whole reference as Markdown."""
    lines = [
        "# API reference",
        "",
        "What may be imported; made from docstrings by `python -m tests.api`. Everything else may change.",
    ]
    for name, chosen in MODULES.items():
        module = importlib.import_module(name)
        lines += ["", f"## {name}", "", _text(inspect.getdoc(module) or "") if chosen else ""]
        for item in chosen or sorted(module.__all__):
            lines += _entry(name, item, getattr(module, item))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _entry(module: str, name: str, value: object) -> Iterator[str]:
    if not callable(value):
        yield from (
            "",
            f"### `{module}.{name}`",
            "",
            f"`{value!r}`" if not name.startswith("__") else "Text.",
        )
        return
    kind = "class " if inspect.isclass(value) else ""
    yield from ("", f"### `{kind}{module}.{name}`", "", *_signature(name, value), "", _text(_doc(value)))
    members = getattr(value, "model_fields", {})
    yield from (
        "",
        *(f"- `{f.alias or key}`: {_meaning(f)}" for key, f in members.items()),
    )
    if inspect.isclass(value) and not issubclass(value, BaseException):
        for method, own in vars(value).items():
            inner = own.fget if isinstance(own, property) else getattr(own, "__func__", own)
            if method.startswith(("_", "model_")) or not inspect.isfunction(inner) or not inner.__doc__:
                continue
            head = f"`.{method}`" if isinstance(own, property) else f"`.{method}{_brief(inner)}`"
            yield from ("", f"**{head}**", "", _text(_doc(inner)))


def _meaning(feature: FieldInfo) -> str:
    """What a feature of a record is: its description, or what its type says of itself."""
    types = [t for t in (feature.annotation, *get_args(feature.annotation)) if inspect.isclass(t)]
    own = next((inspect.getdoc(t) for t in types if t.__module__.startswith("glprune")), None)
    return feature.description or (own or "as its name says.").splitlines()[0]


def _doc(value: object) -> str:
    """The value's own docstring, without the one pydantic or dataclasses make up."""
    found = inspect.getdoc(value) or ""
    return "" if found.startswith(f"{getattr(value, '__name__', '')}(") else found


def _signature(name: str, value: object) -> Iterator[str]:
    if inspect.isclass(value) and (issubclass(value, BaseException) or hasattr(value, "model_fields")):
        return
    yield from ("```text", f"{name}{_brief(value)}", "```")


def _brief(value: object) -> str:
    """The signature without annotations, which the text gives in words."""
    signature = inspect.signature(value)  # type: ignore[arg-type]
    bare = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in signature.parameters.values()
        if p.name not in ("self", "cls")
    ]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def _text(doc: str) -> str:
    """A docstring of Google's style as Markdown: sections in bold, their entries as lists."""
    lines: list[str] = []
    section = ""
    for line in doc.splitlines():
        head = re.fullmatch(rf"({'|'.join(_SECTIONS)}):", line)
        if head:
            section = head[1]
            lines += ["", f"*{section}*", ""]
        elif section and re.match(r" {4}\S", line) and section != "Example":
            entry = re.match(r" {4}(\*{0,2}\w+(?: \([^)]*\))?): (.*)", line)
            lines.append(
                f"- `{entry[1]}`: {entry[2]}"
                if entry
                else f"- {line.strip()}"
                if _first(lines)
                else f"  {line.strip()}"
            )
        elif section and line.startswith(" "):
            lines.append(line if section == "Example" else f"  {line.strip()}")
        else:
            section = section if not line.strip() else ""
            lines.append(line)
    text = re.sub(r":(?:mod|func|class|meth|attr):`([^`]*)`", r"`\1`", "\n".join(lines))
    return text.replace("``", "`")


def _first(lines: list[str]) -> bool:
    """Whether nothing of the section stands yet."""
    return not lines or not lines[-1].startswith(("- ", "  "))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
