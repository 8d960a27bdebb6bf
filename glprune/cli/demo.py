"""``glprune demo``: run an example that is bundled with the package."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import click

from glprune.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Demo:
    """One bundled example; the paths are relative to the folder that holds ``recipes`` and ``examples``."""

    recipe: str
    model: str
    summary: str


_DEFAULT = "german_credit"
DEMOS: Mapping[str, Demo] = {
    "german_credit": Demo(
        "recipes/german_credit.yaml",
        "examples/german_credit/model.pt",
        "1,000 credit applicants, 20 features in 61 columns; about 20 seconds on 2 cores",
    ),
    "mnist": Demo(
        "recipes/mnist.yaml",
        "examples/mnist/model.pt",
        "5,000 handwritten digits, 784 pixels; about two minutes on 2 cores",
    ),
}


def demo_root() -> Path:
    """Return the folder that holds ``recipes`` and ``examples``: in the installed package, or of a clone."""
    package = Path(str(resources.files("glprune")))
    for root in (package / "demos", package.parent):
        if all((root / demo.model).is_file() for demo in DEMOS.values()):
            return root
    raise UsageError(
        f"demo: {package} holds no examples; install glprune from its wheel or run it from a clone."
    )


def make_demo_command(run: click.Command) -> click.Command:
    """Build ``glprune demo``, which calls ``run`` with a bundled recipe and model."""

    @click.command("demo", epilog=getattr(run, "epilog", None))
    @click.argument("name", required=False)
    @click.option("--list", "list_demos", is_flag=True, help="Print the names of the examples and exit.")
    @click.option("--out", type=click.Path(path_type=Path), help="Folder to write [glprune-out/NAME].")
    @click.option("--overwrite", is_flag=True, help="Replace an older bundle or a stopped run.")
    @click.option("--resume", is_flag=True, help="Continue a stopped run, if there is one.")
    @click.option("--quiet", is_flag=True, help="Print neither progress nor the result.")
    @click.pass_context
    def demo(
        context: click.Context, /, name: str | None, list_demos: bool, out: Path | None, **run_options: bool
    ) -> None:
        """Prune the bundled example NAME: german_credit (the default) or mnist.

        The recipe, data and trained network are read from the installed package; only the bundle is written.
        """
        if list_demos:
            if name is not None:
                raise UsageError("demo: --list takes no NAME; leave one of them out.")
            _print_list()
            return
        name = name or _DEFAULT
        chosen, root, bundle = _find(name), demo_root(), out or Path("glprune-out") / name
        context.invoke(run, recipe=root / chosen.recipe, model=root / chosen.model, out=bundle, **run_options)
        if not run_options["quiet"]:
            verify = shlex.join(["glprune", "verify", str(bundle)])
            click.echo(f"next: open {bundle / 'report.html'}, or: {verify}")

    return demo


def _find(name: str) -> Demo:
    if name not in DEMOS:
        known = ", ".join(DEMOS)
        raise UsageError(
            f"demo: there is no example {name!r}.{did_you_mean(name, tuple(DEMOS))} Examples: {known}."
        )
    return DEMOS[name]


def _print_list() -> None:
    width = max(map(len, DEMOS))
    for name, demo in DEMOS.items():
        click.echo(f"{name:{width}}  {demo.summary}")
