"""Names from data files are shown and never obeyed; a recipe imports what it may and no more."""

import functools
import json
import pickle
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from markdown_it import MarkdownIt
from torch import nn

import glprune
import glprune.audit.verify
from glprune._escaping import escape_for_page, escape_for_terminal
from glprune.cli.main import main
from glprune.errors import ModelError, RecipeError
from glprune.schema.recipe_loading import load_recipe
from tests.bad_inputs import write_problem
from tests.bad_models import good, saved
from tests.bundle_fixtures import FAST

NAMES = [
    "<script>alert(1)</script>",
    "\x1b[31mred\x1b]0;title\x07",
    "abc\u202efdp.exe",
    "zero\u200bwidth\ufeff",
    "[click](javascript:alert(1))|`code`|",
    "[bold red]rich[/]{{ 7*7 }}&lt;b&gt;",
    "line\nbreak\r\x85end",
    '"><img src=x onerror=alert(1)>' + "x" * 400,
]
STEERING = ("\x1b", "\x07", "\u202e", "\u200b", "\ufeff", "\x85", "\r")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.active = set(), []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.active += [k for k, v in attrs if k.startswith("on") or "javascript:" in (v or "")]


def invoke(*args):
    return CliRunner().invoke(main, list(args), prog_name="glprune")


def inspect(problem, **options):
    """Inspect the problem of the bad inputs, whose network is not trained."""
    return glprune.inspect(problem / "recipe.yaml", problem / "model.pt", accept_original=True, **options)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run on columns of hostile names, and what it printed."""
    folder = tmp_path_factory.mktemp("hostile")
    x = np.random.default_rng(0).normal(size=(120, len(NAMES)))
    target = np.where(x[:, 0] > 0, "<b>yes", "no|\x1b[0m")
    pq.write_table(
        pa.table({name: x[:, i] for i, name in enumerate(NAMES)} | {"y": target}), folder / "data.parquet"
    )
    (folder / "n.py").write_text(f"from torch import nn\nbuild = lambda: nn.Linear({len(NAMES)}, 1)\n")
    torch.manual_seed(0)
    torch.save(nn.Linear(len(NAMES), 1).state_dict(), folder / "m.pt")
    (folder / "recipe.yaml").write_text(
        'task: binary\nmodel: {factory: "n.py:build"}\ndata: {file: data.parquet, target: y}\n'
        'report: {title: "</title><script>\\e[2J", purpose: "a\\u202eb <i>"}\ntarget: {max_features: 5}\n'
        + FAST
    )
    done = invoke("run", str(folder / "recipe.yaml"), str(folder / "m.pt"), "--out", str(folder / "out"))
    assert done.exit_code == 0, done.output
    return folder, done.output


def test_names_cannot_become_markup_of_the_page(hostile):
    page = (hostile[0] / "out" / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.seen & {"script", "img", "i", "b", "iframe"}
    assert tags.active == []
    assert not any(c in page for c in STEERING)
    assert "&lt;script&gt;alert(1)" in page
    assert "abc\\u202efdp.exe" in page


def test_names_cannot_become_markup_of_the_summary(hostile):
    text = (hostile[0] / "out" / "report.md").read_text()
    tags = Tags()
    tags.feed(MarkdownIt("gfm-like", {"linkify": False}).render(text))
    assert not tags.seen & {"script", "img", "i", "b", "a", "iframe"}
    assert tags.active == []
    assert not any(c in text for c in STEERING)


def test_names_cannot_steer_the_terminal(hostile, monkeypatch):
    folder, printed = hostile
    inside = functools.partial(glprune.audit.verify.verify, isolated=False)
    monkeypatch.setattr(glprune.audit.verify, "verify", inside)
    bundle = str(folder / "out")
    for command in (
        ["verify", bundle],
        ["verify", bundle, "--json"],
        ["diff", bundle, bundle],
        *(["explain", bundle, name] for name in NAMES),
        ["explain", bundle, NAMES[1], "--json"],
        ["inspect", str(folder / "recipe.yaml"), str(folder / "m.pt")],
        ["inspect", str(folder / "recipe.yaml"), str(folder / "m.pt"), "--json"],
    ):
        done = invoke(*command)
        assert done.exit_code == 0, done.output
        printed += done.output
    assert not any(c in printed for c in STEERING)
    assert "\\u001b[31mred" in printed
    assert "[bold red]rich[/]" in printed


def test_a_recipe_for_hostile_names_loads_back_to_them(hostile):
    folder = hostile[0]
    out = folder / "new.yaml"
    assert invoke("init", str(folder / "data.parquet"), "--out", str(out)).exit_code == 0
    assert load_recipe(out).data.target == "y"
    recipe = load_recipe(folder / "out" / "recipe.resolved.yaml")
    assert recipe.report.title == "</title><script>\x1b[2J"


def test_what_cannot_be_seen_is_spelled_out():
    assert escape_for_terminal("a\x1b\u202e\U000e0001\n") == "a\\u001b\\u202e\\U000e0001\\u000a"
    assert escape_for_page("größe 字 🙂\n", keep="\n") == "größe 字 🙂\n"
    assert escape_for_page("a\u200b\ud800") == "a\\u200b\\ud800"


def test_a_terminal_without_the_letters_gets_them_spelled(hostile, monkeypatch):
    folder = hostile[0] / "字"
    shutil.copytree(hostile[0] / "out", folder)
    inside = functools.partial(glprune.audit.verify.verify, isolated=False)
    monkeypatch.setattr(glprune.audit.verify, "verify", inside)
    done = CliRunner(charset="latin-1").invoke(main, ["verify", str(folder)], prog_name="glprune")
    assert done.exit_code == 0
    assert "\\u5b57" in done.stdout.splitlines()[0]


# --------------------------------------------------------------------------- what a recipe may import


@pytest.fixture
def problem(tmp_path, monkeypatch):
    write_problem(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "allowed"),
    [
        ("networks.py:build", ["networks.py"]),
        ("networks.py:build", ["torch", "networks.py"]),
        ("networks.py:build", None),
        ("networks:build", None),
        ("tests.networks:small", ["tests"]),
        ("tests.networks:small", ["tests.networks"]),
    ],
)
def test_what_is_named_may_be_imported(reference, allowed, problem, monkeypatch):
    monkeypatch.setattr(
        "tests.networks.small",
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)),
        raising=False,
    )
    monkeypatch.setattr("tests.networks.small.__module__", "tests.networks")
    text = (problem / "recipe.yaml").read_text().replace("networks.py:build", reference)
    (problem / "recipe.yaml").write_text(text)
    facts = inspect(problem, allow_factory=allowed)
    assert facts.parameters == 21
    sys.modules.pop("networks", None)


def test_the_pin_goes_along_where_a_recipe_is_copied_to_another_process(problem):
    pinned = load_recipe(problem / "recipe.yaml").allowing(["torch"])
    copied = pickle.loads(pickle.dumps(pinned))
    assert copied.allowed == ("torch",)
    assert load_recipe(problem / "recipe.yaml").allowed is None
    with pytest.raises(RecipeError, match="is not listed by --allow-factory"):
        glprune.run(copied, problem / "model.pt", problem / "out")
    with pytest.raises(RecipeError, match="is not listed by --allow-factory"):
        glprune.run(problem / "recipe.yaml", problem / "model.pt", problem / "out", allow_factory=["torch"])
    assert not (problem / "out").exists()


def test_a_bundle_names_its_factory_and_may_be_held_to_a_package(audited, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(audited["slim"], bundle)
    plan = json.loads((bundle / "plan.json").read_text())
    plan |= {"factory": "os:system", "arguments": {"command": f"touch {tmp_path}/ran"}}
    (bundle / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(RecipeError, match="'os' is not listed by --allow-factory"):
        glprune.load(bundle, allow_factory=["torchvision"])
    plan |= {"factory": "torch.nn:Linear", "arguments": {"in_features": 0}}
    (bundle / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ModelError, match="its factory failed"):
        glprune.load(bundle, allow_factory=["torch.nn"])
    assert not (tmp_path / "ran").exists()


def test_extra_members_and_old_formats_of_tensors_alone_are_read(problem):
    good(("m/readme.txt", b"x"), ("m/extra/evil.py", b"open('ran', 'w')"))(problem)
    assert inspect(problem).parameters == 21
    saved(lambda s: s, _use_new_zipfile_serialization=False)(problem)
    assert inspect(problem).parameters == 21
    assert not (problem / "ran").exists()
