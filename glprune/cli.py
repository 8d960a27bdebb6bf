"""The ``glprune`` command: parse, call, print, exit code. No logic of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from glprune._version import __version__
from glprune.audit.commands import COMMANDS
from glprune.errors import GlpruneError, UsageError

_EPILOG = (
    "Exit codes: 0 done; 2 usage, recipe or output folder; 3 model; 4 data; 5 target not reachable; "
    "130 interrupted."
)

# what `pip install --no-deps glprune` and the auditor's list leave out
_NOT_FOR_AUDITORS = ("torch", "torch_pruning", "pyarrow", "scipy", "torchmetrics", "onnxscript", "matplotlib")


class _Group(click.Group):
    """Turn the errors a user can cause into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # a closed pipe or Ctrl-C must leave neither traceback nor half a message
        try:
            return super().main(*args, **(kwargs | {"standalone_mode": False}))
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _fail("interrupted; nothing was written", 130)
        except GlpruneError as error:
            _fail(f"{error}", error.exit_code)
        except ModuleNotFoundError as error:
            if error.name not in _NOT_FOR_AUDITORS:
                raise
            _fail(f"this command needs {error.name}; install glprune with its dependencies", 2)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"glprune: {' '.join(message.split())}", err=True)
    sys.exit(code)


_recipe = click.argument("recipe", type=click.Path(path_type=Path))
_model = click.argument("model", type=click.Path(path_type=Path))
_set = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe."
)
_trust = click.option(
    "--trust-pickle", is_flag=True, help="Read a fully pickled model; this runs whatever code it holds."
)
_allow = click.option(
    "--allow-factory",
    "allow_factory",
    multiple=True,
    metavar="PACKAGE",
    help="Import the recipe's factory and loader from this package, module or .py file only; repeatable.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
_quiet = click.option("--quiet", is_flag=True, help="Print no progress.")


@click.group(cls=_Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glprune")
def main() -> None:
    """Prune trained PyTorch networks by penalties on groups and ship a slim ONNX model with a report."""


@main.command(epilog=_EPILOG)
@_recipe
@_model
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write [glprune-out/RECIPE].")
@click.option("--overwrite", is_flag=True, help="Replace an older bundle.")
@_set
@_trust
@_allow
@_json
@_quiet
def run(
    recipe: Path,
    model: Path,
    out: Path | None,
    overwrite: bool,
    overrides: Sequence[str],
    trust_pickle: bool,
    allow_factory: Sequence[str],
    as_json: bool,
    quiet: bool,
) -> None:
    """Prune MODEL (.pt or .safetensors) as RECIPE says and leave a bundle."""
    from glprune.console import Teller, print_report
    from glprune.pipeline import run as run_pipeline

    loaded = _load(recipe, overrides, allow_factory)
    with Teller(_console(stderr=True), quiet) as teller:
        result = run_pipeline(
            loaded, model, out, overwrite=overwrite, trust_pickle=trust_pickle, on_event=teller
        )
    if as_json:
        report = result.report.model_dump(mode="json", by_alias=True)
        click.echo(json.dumps({"bundle": str(result.bundle), "report": report}, ensure_ascii=False))
    elif not quiet:
        print_report(_console(), result.report, str(result.bundle))


@main.command(epilog=_EPILOG)
@_recipe
@_model
@_set
@_trust
@_allow
@_json
def inspect(
    recipe: Path,
    model: Path,
    overrides: Sequence[str],
    trust_pickle: bool,
    allow_factory: Sequence[str],
    as_json: bool,
) -> None:
    """Show what a run would group, cut and refuse, and what it would cost. Nothing is written."""
    from glprune import console
    from glprune.inspection import inspect as run_inspection

    loaded = _load(recipe, overrides, allow_factory)
    inspection = run_inspection(loaded, model, trust_pickle=trust_pickle)
    if as_json:
        click.echo(json.dumps(console.as_json(inspection), ensure_ascii=False))
    else:
        console.print_inspection(_console(), inspection)


@main.command(epilog=_EPILOG)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write; default standard output.")
def init(data: Path, out: Path | None) -> None:
    """Write a commented recipe for DATA (.csv or .parquet)."""
    from glprune.starter import starter_recipe

    text = starter_recipe(data, out.parent if out else Path())
    if out is None:
        click.echo(text, nl=False)
        return
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out.")
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); choose another --out.") from error
    click.echo(f"wrote {out}; read its comments, then: glprune inspect {out} MODEL", err=True)


@main.command(epilog=_EPILOG)
@click.argument("name", type=click.Choice(["recipe", "report"]), default="recipe")
def schema(name: str) -> None:
    """Print the JSON Schema of recipes (default) or of report.json."""
    from glprune.recipe import recipe_schema
    from glprune.report import report_schema

    schemas = {"recipe": recipe_schema, "report": report_schema}
    click.echo(json.dumps(schemas[name](), indent=2, ensure_ascii=False))


for _command in COMMANDS:
    main.add_command(_command)


def _load(recipe: Path, overrides: Sequence[str], allow_factory: Sequence[str]) -> Any:
    from glprune.recipe import load_recipe

    return load_recipe(recipe, overrides).allowing(allow_factory or None)


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr)  # rich honours NO_COLOR and plain pipes


if __name__ == "__main__":
    main()
