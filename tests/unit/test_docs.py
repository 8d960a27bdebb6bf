"""The documentation covers what is public: API names, keys of recipe and report, commands and their options."""

import importlib.util
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import glprune
from tests import attack_table
from tests.paths import ROOT
from tests.structure import order_of_packages

DOCS = ROOT / "docs"
PAGES = DOCS / "pages"


def _module(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _public():
    return re.findall(
        r"^::: (\S+)$", (PAGES / "reference" / "api.md").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_the_api_page_lists_every_name_the_package_exports():
    listed = {name.removeprefix("glprune.") for name in _public()}
    assert set(glprune.__all__) - {"__version__"} <= listed


@pytest.mark.parametrize("name", _public())
def test_every_name_of_the_api_page_exists_and_is_described(name):
    value = pkgutil.resolve_name(name)
    if callable(value):
        assert len((inspect.getdoc(value) or "").strip()) > 10


@pytest.mark.parametrize("model", [glprune.Recipe, glprune.Report])
def test_a_schema_reference_has_every_key_of_every_section(model):
    reference = _module("schema_reference").reference(model)
    schema = model.model_json_schema(by_alias=True)
    for section in (schema, *schema["$defs"].values()):
        for key in section.get("properties", {}):
            assert f"| `{key}`{{ .key }} |" in reference, key


def test_every_key_of_the_recipe_is_described():
    assert _module("schema_reference").undescribed(glprune.Recipe) == []


def test_a_default_made_by_a_factory_is_written_out():
    reference = _module("schema_reference").reference(glprune.Recipe)
    assert "| `[0.3, 1.0, 3.0]` |" in reference


def test_the_command_reference_has_every_command_and_option():
    from glprune.cli.main import main

    module = _module("command_reference")
    reference = module.reference(main, "glprune")
    assert module.undescribed(main) == []
    for name, command in main.commands.items():
        assert f"## `glprune {name}`" in reference
        for option in (opt for p in command.params for opt in p.opts if opt.startswith("--")):
            assert option in reference.partition(f"## `glprune {name}`")[2].split("\n## ")[0], (name, option)


def test_exit_codes_are_a_table():
    from glprune.cli.main import main

    verify = _module("command_reference").reference(main, "glprune").partition("## `glprune verify`")[2]
    assert re.findall(r"^\| (\d) \|", verify, re.MULTILINE) == ["0", "1", "2", "3", "4", "5"]


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/-]+\.md", (DOCS / "mkdocs.yml").read_text(encoding="utf-8")))
    assert {p.relative_to(PAGES).as_posix() for p in PAGES.rglob("*.md")} <= listed


def test_the_architecture_page_names_files_that_exist_and_every_package():
    text = (PAGES / "architecture.md").read_text(encoding="utf-8")
    package = Path(glprune.__file__).parent
    named = re.findall(r"`((?:\w+/)*\w+\.py|(?:\w+/)+)`", text)
    assert len(named) > 60
    own = {"tests", "recipes", "examples", "benchmarks", "docs", "unit", "integration"}
    missing = [n for n in named if n.split("/")[0] not in own and not (package / n).exists()]
    assert missing == []
    picture = (PAGES / "images" / "architecture.svg").read_text(encoding="utf-8")
    for name in (
        name for layer in order_of_packages() for name in layer if name not in ("_version", "__main__")
    ):
        assert name in text, name
        assert name in picture, name


def test_every_package_of_the_tree_is_on_the_architecture_page():
    text = (PAGES / "architecture.md").read_text(encoding="utf-8")
    folders = {p.parent.name for p in Path(glprune.__file__).parent.glob("*/__init__.py")}
    assert folders <= set(re.findall(r"^### (\w+)$", text, re.MULTILINE))


def test_the_page_of_attacks_is_the_one_that_the_tests_give_and_lists_at_least_150():
    assert attack_table.PAGE.read_text(encoding="utf-8") == attack_table.page()
    rows = [row for _, rows in attack_table.sections() for row in rows]
    assert len(rows) >= 150
    assert all(row.code in (1, 3, 4, 5) for row in rows)
