"""Importing what a recipe names: files, their siblings, and scripts."""

import sys

import pytest

from glprune._imports import load_callable
from glprune._lazy import lazy_names
from glprune.errors import GlpruneError, RecipeError

LIBRARY = "value = {}\ndef get():\n    return value\n"


def written(folder, **files):
    """Write Python files; two underscores in a name stand for a slash."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "from netlib import value\ndef build():\n    return value\n",
        "def build():\n    from netlib import value\n    return value\n",
        "import pack.inner\ndef build():\n    return pack.inner.value\n",
        "from netlib import get as build\n",
    ],
)
def test_a_file_imports_its_siblings(tmp_path, text):
    place = written(
        tmp_path, src__net=text, src__netlib=LIBRARY.format(3), src__pack__inner=LIBRARY.format(3)
    )
    before = list(sys.path)
    assert load_callable("src/net.py:build", place, "here")() == 3
    assert sys.path == before


@pytest.mark.parametrize("text", ["from netlib import value\ndef build():\n    return value\n", "def build():\n    from netlib import value\n    return value\n"])  # fmt: skip
def test_siblings_of_one_name_in_two_folders_are_not_mixed_up(tmp_path, text):
    folders = [written(tmp_path / str(n), net=text, netlib=LIBRARY.format(n)) for n in range(2)]
    assert [load_callable("net.py:build", f, "here")() for f in (*folders, folders[0])] == [0, 1, 0]


@pytest.mark.parametrize(
    "text",
    [
        "from .netlib import value",
        "from . import netlib\nvalue = netlib.value",
        "from ..pack.netlib import value",
        "from top.pack.netlib import value",
        "from netlib import value",
        "from .. import value",
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_file_of_a_package_imports_from_it(tmp_path, text, late):
    text = f"def build():\n    {text.replace(chr(10), chr(10) + '    ')}\n    return value\n" if late else f"{text}\ndef build():\n    return value\n"  # fmt: skip
    found = []
    for n in range(2):
        files = {"src__top__pack__net": text, "src__top__pack__netlib": LIBRARY.format(n)}
        place = written(tmp_path / str(n), **files)
        (place / "src" / "top" / "__init__.py").write_text(f"value = {n}")
        (place / "src" / "top" / "pack" / "__init__.py").write_text("")
        found.append(load_callable("src/top/pack/net.py:build", place, "here")())
        refused = "'src/top/pack/net.py' imports '.*' from its own folder, which --allow-factory"
        with pytest.raises(RecipeError, match=refused):
            load_callable("src/top/pack/net.py:build", place, "here", ["src/top/pack/net.py"])()
    assert found == [0, 1]


def test_installed_modules_are_not_forgotten(tmp_path):
    import json

    text = "import json, netlib\ndef build():\n    return json\n"
    for n in range(2):
        folder = written(tmp_path / str(n), net=text, netlib="")
        assert load_callable("net.py:build", folder, "here")() is json


@pytest.mark.parametrize(
    "text", ["import netlib\ndef build():\n    pass\n", "def build():\n    import netlib\n"]
)
def test_siblings_are_not_found_where_only_listed_files_may_be(tmp_path, text):
    place = written(tmp_path, net=text, netlib="open('ran', 'w')")
    with pytest.raises(
        RecipeError, match=r"'net\.py' imports 'netlib' from its own folder, which --allow-factory"
    ):
        load_callable("net.py:build", place, "here", ["net.py"])()
    assert "netlib" not in sys.modules


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("import absent_library\n", "'net.py' imports 'absent_library', which is neither installed nor beside it"),
        ("from .netlib import value\n", "import the modules beside it without a dot"),
        ("import argparse\np = argparse.ArgumentParser()\np.add_argument('--lr', required=True)\np.parse_args([])\n", "the following arguments are required: --lr); put what a script runs under if __name__"),
        ("import sys, argparse\nargparse.ArgumentParser().parse_args(['run'])\n", "unrecognized arguments: run); put what"),
        ("import click\n@click.command()\n@click.option('--lr', required=True)\ndef main(lr):\n    pass\nmain([])\n", "SystemExit: 2"),
        ("raise SystemExit\n", "put what a script runs under"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_is_one_line(tmp_path, capfd, text, fragment):
    with pytest.raises(GlpruneError) as caught:
        load_callable("net.py:build", written(tmp_path, net=text), "here")
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_what_a_module_writes_to_standard_error_is_passed_on(tmp_path, capsys):
    text = "import sys\nprint('once', file=sys.stderr)\nkept = sys.stderr\ndef build():\n    print('later', file=kept)\n"
    load_callable("net.py:build", written(tmp_path, net=text), "here")()
    assert capsys.readouterr().err == "once\nlater\n"


def test_a_public_name_whose_package_is_not_installed_says_what_to_install(tmp_path, monkeypatch):
    """As ``glprune.load`` does in the environment of an auditor, which has no PyTorch."""
    written(tmp_path, lazy_package____init__="", lazy_package__needs="import not_installed_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    get = lazy_names("lazy_package", {"load": "needs", "other": "absent"})
    with pytest.raises(
        ModuleNotFoundError, match=r"lazy_package\.load needs not_installed_here, .*install"
    ) as e:
        get("load")
    assert e.value.name == "not_installed_here"
    with pytest.raises(
        ModuleNotFoundError, match=r"No module named 'lazy_package\.absent'"
    ):  # a bug stays one
        get("other")
