"""The rules on files, layers and the order of packages hold, and breaking one is seen."""

import pytest

from tests.structure import MAX_LAYERS, Structure, longest_chain


@pytest.fixture(scope="module")
def structure():
    return Structure.read()


def make_package(folder, files):
    """A package ``glprune`` of these files (``data/a`` is ``glprune/data/a.py``), read as the real one is."""
    root = folder / "glprune"
    for name, text in files.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    return Structure.read(root)


def test_the_package_breaks_no_rule(structure):
    assert structure.violations() == []


def test_the_imports_have_few_layers(structure):
    assert len(longest_chain(structure.graph(lazy=False))) <= MAX_LAYERS


def test_an_import_against_the_order_of_packages_is_found(tmp_path):
    made = make_package(tmp_path, {"data/a": "from glprune.model import b\n", "model/b": ""})
    assert made.against_order() == ["glprune.data.a:1 imports glprune.model.b"]


def test_a_lazy_import_against_the_order_counts_and_one_for_types_does_not(tmp_path):
    lazy = "def f():\n    import glprune.model.b\n"
    typed = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import glprune.model.b\n"
    assert make_package(tmp_path / "lazy", {"data/a": lazy, "model/b": ""}).against_order()
    assert not make_package(tmp_path / "typed", {"data/a": typed, "model/b": ""}).against_order()


def test_a_package_without_a_place_in_the_order_is_found(tmp_path):
    made = make_package(tmp_path, {"extra/a": "import glprune.errors\n", "errors": ""})
    assert made.against_order() == ["extra has no place in the order of packages"]


def test_a_cycle_is_found(tmp_path):
    made = make_package(tmp_path, {"data/a": "import glprune.data.b\n", "data/b": "import glprune.data.a\n"})
    assert len(made.cycles()) == 1
    assert made.violations()[0].startswith("cycle: ")


def test_too_many_files_in_a_package_are_found(tmp_path):
    made = make_package(tmp_path, {f"data/m{n}": "" for n in range(20)})
    assert made.violations() == ["glprune.data has 21 files, at most 15"]


def test_layers_are_the_longest_chain():
    assert longest_chain({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == ["a", "b", "c"]


def test_a_docstring_does_not_count_as_lines(tmp_path):
    made = make_package(tmp_path, {"data/a": 'def f(x):\n    """Say.\n\n    More.\n    """\n    return x\n'})
    [function] = made.functions()
    assert (function.lines, function.typed) == (2, False)
