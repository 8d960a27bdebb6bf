"""The ``glprune`` command: parse, call, print, exit code. No logic of its own."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from glprune._escaping import escape_for_terminal
from glprune._version import __version__
from glprune.cli.audit import COMMANDS
from glprune.cli.ci import COMMANDS as PIPELINE_COMMANDS
from glprune.cli.ci import ci_option
from glprune.cli.demo import make_demo_command
from glprune.errors import (
    GlpruneError,
    PeerFailedError,
    SigtermInterrupt,
    UsageError,
    exit_code,
    user_message,
)

if TYPE_CHECKING:
    from glprune.runtime.process_group import ProcessGroup

_EPILOG = (
    "Exit codes: 0 done; 2 usage, recipe or output folder; 3 model; 4 data; 5 target not reachable; "
    "130 interrupted; 143 terminated."
)
_LONGEST = 2000  # characters of a message; names in it may be of any length
# what `pip install --no-deps glprune` and the auditor's list leave out
_NOT_FOR_AUDITORS = ("torch", "torch_pruning", "pyarrow", "scipy", "torchmetrics", "onnxscript", "matplotlib")


class _Group(click.Group):
    """Turn the errors a user can cause into one line and an exit code."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not sys.warnoptions:  # libraries' words to programmers are not for the terminal
            warnings.simplefilter("ignore")
        return super().__call__(*args, **kwargs)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # a closed pipe or Ctrl-C must leave neither traceback nor half a message
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a name the terminal has no letters for
        try:
            return super().main(*args, **(kwargs | {"standalone_mode": False}))
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            _fail(_usage(error), error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _fail("interrupted; nothing was written", 130)
        except ModuleNotFoundError as error:
            if error.name not in _NOT_FOR_AUDITORS:
                raise
            _fail(f"this command needs {error.name}; install glprune with its dependencies", 2)
        except BrokenPipeError:
            _drop_output()
            sys.exit(0)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO):
                _drop_output()
            text = user_message(error)
            if text is None:
                raise
            _fail(text, exit_code(error))


@contextlib.contextmanager
def _ending(out: Path) -> Iterator[ProcessGroup]:
    """Join the processes of a launcher; say once why a run was stopped and what became of its work."""
    from glprune.runtime.process_group import ALONE, init_process_group

    members = ALONE
    try:
        with _signals(), init_process_group() as members:
            yield members
    except (KeyboardInterrupt, GlpruneError, OSError, MemoryError) as error:
        if members.reported_by_main:
            sys.exit(exit_code(error))
        if not isinstance(error, KeyboardInterrupt | PeerFailedError):
            raise
        _fail(f"{user_message(error)}; {_what_is_kept(out, members)}", exit_code(error))


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does; each of several processes hears one signal, however many come."""
    from glprune.runtime.launcher import process_info

    several = process_info().size > 1
    heard = (signal.SIGTERM, signal.SIGINT) if several else (signal.SIGTERM,)
    before = {number: signal.getsignal(number) for number in heard}

    def stop(number: int, frame: object) -> NoReturn:
        if several:
            deafen()
        raise SigtermInterrupt if number == signal.SIGTERM else KeyboardInterrupt

    def deafen() -> None:
        for number in heard:
            signal.signal(number, signal.SIG_IGN)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    except BaseException:
        if several:  # it ends, and who leaves first has the launcher end the others
            deafen()
            before = {}
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _what_is_kept(out: Path, members: ProcessGroup) -> str:
    from glprune.runtime.output_folder import is_resumable, unfinished_path

    if not is_resumable(out):
        return "nothing was written"
    needless = {"--resume"} if out.exists() else {"--resume", "--overwrite"}
    again = shlex.join(["glprune", *(a for a in sys.argv[1:] if a not in needless), "--resume"])
    if members.size > 1:
        again = f"as many processes, each {again}"
    return f"what was done is kept in {unfinished_path(out)}. To go on: {again}"


def _drop_output() -> None:
    """Let nothing that is still to be printed fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: click.ClickException) -> str:
    """A wrong command line in one line, with where to read more."""
    context = getattr(error, "ctx", None)
    where = f"; see {context.command_path} --help" if context is not None else ""
    return f"{error.format_message().rstrip('.')}{where}."


def _fail(message: str, code: int) -> NoReturn:
    line = escape_for_terminal(" ".join(message.split()))
    click.echo(f"glprune: {line if len(line) <= _LONGEST else line[:_LONGEST] + '...'}", err=True)
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
    help="Import the recipe's factory, loader and plugins from this package, module or .py file alone.",
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
@click.option("--overwrite", is_flag=True, help="Replace an older bundle or a stopped run.")
@click.option("--resume", is_flag=True, help="Go on from what a stopped run has done, if there is any.")
@click.option("--reporter", "reporters", multiple=True, metavar="NAME", help="Plugin to tell the result.")
@_set
@_trust
@_allow
@ci_option
@click.option("--mlflow", is_flag=True, help="Log parameters, path, bundle and model to MLflow.")
@click.option("--mlflow-model", metavar="NAME", help="Register the logged model under this name.")
@click.option("--mlflow-alias", metavar="ALIAS", help="Point this alias at the registered version.")
@_json
@_quiet
def run(
    recipe: Path,
    model: Path,
    out: Path | None,
    overwrite: bool,
    resume: bool,
    reporters: Sequence[str],
    overrides: Sequence[str],
    trust_pickle: bool,
    allow_factory: Sequence[str],
    ci: str,
    mlflow: bool,
    mlflow_model: str | None,
    mlflow_alias: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Prune MODEL (.pt or .safetensors) as RECIPE says and leave a bundle."""
    from glprune.cli.console import ProgressReporter, print_report
    from glprune.integrations.ci.systems import ci_context, publish_run, systems
    from glprune.pipeline import run as run_pipeline
    from glprune.runtime.events import Notice
    from glprune.runtime.launcher import is_main_process, launcher_warning

    if (mlflow_model or mlflow_alias) and not mlflow:
        raise UsageError("--mlflow-model and --mlflow-alias need --mlflow.")
    where = systems(ci) if is_main_process() else ()
    folder = out or Path("glprune-out") / recipe.stem
    with contextlib.ExitStack() as around:
        around.enter_context(ci_context(where, "run", folder))
        members = around.enter_context(_ending(folder))
        loaded = _load(recipe, overrides, allow_factory)
        log = around.enter_context(
            _tracked(mlflow and members.is_main, folder.name, mlflow_model, mlflow_alias)
        )
        with ProgressReporter(_console(stderr=True), quiet) as teller:
            if text := launcher_warning():
                teller(Notice(text))
            result = run_pipeline(
                loaded,
                model,
                out,
                overwrite=overwrite,
                resume=resume,
                trust_pickle=trust_pickle,
                reporters=reporters,
                on_event=teller,
            )
        if not members.is_main:
            return
        log(result)
        if as_json:
            report = result.report.model_dump(mode="json", by_alias=True)
            click.echo(json.dumps({"bundle": str(result.bundle), "report": report}))
        elif not quiet:
            print_report(_console(), result.report, str(result.bundle))
    if where:
        publish_run(where, result.report, result.bundle)


@contextlib.contextmanager
def _tracked(wanted: bool, name: str, model: str | None, alias: str | None) -> Iterator[Callable[[Any], Any]]:
    """Log what a run makes to MLflow, if that is wanted."""
    if not wanted:
        yield lambda result: None
        return
    from glprune.integrations.mlflow import tracked

    with tracked(name, model, alias) as log:
        yield log


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
    from glprune.cli import console
    from glprune.inspection import inspect as run_inspection

    loaded = _load(recipe, overrides, allow_factory)
    inspection = run_inspection(loaded, model, trust_pickle=trust_pickle)
    if as_json:
        click.echo(json.dumps(console.as_json(inspection)))
    else:
        console.print_inspection(_console(), inspection)


@main.command(epilog=_EPILOG)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write; default standard output.")
def init(data: Path, out: Path | None) -> None:
    """Write a commented recipe for DATA (.csv or .parquet)."""
    from glprune.cli.starter_recipe import starter_recipe

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
    from glprune.schema.recipe_loading import recipe_schema
    from glprune.schema.report import report_schema

    schemas = {"recipe": recipe_schema, "report": report_schema}
    click.echo(json.dumps(schemas[name](), indent=2, ensure_ascii=False))


@main.command("export-server", epilog=_EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--triton", type=click.Path(path_type=Path), metavar="DIR", help="Add it to this repository.")
@click.option("--kserve", type=click.Path(path_type=Path), metavar="DIR", help="Write models and YAML here.")
@click.option("--name", help="Name of the model [the bundle's folder].")
@click.option("--storage-uri", default="pvc://models/models", show_default=True, help="For --kserve.")
@click.option(
    "--max-batch",
    type=click.IntRange(1, 2**20),
    default=256,
    show_default=True,
    help="Largest batch, in rows, that the server may form from several requests.",
)
def export_server(
    bundle: Path, triton: Path | None, kserve: Path | None, name: str | None, storage_uri: str, max_batch: int
) -> None:
    """Lay BUNDLE out for the Triton Inference Server or for KServe."""
    from glprune.integrations.triton_kserve import write_kserve, write_triton

    if triton is None and kserve is None:
        raise UsageError("export-server: name --triton DIR, --kserve DIR or both.")
    called = name or bundle.resolve().name.lower().replace("_", "-")
    if triton is not None:
        click.echo(f"wrote {write_triton(bundle, triton, called, max_batch)}", err=True)
    if kserve is not None:
        click.echo(f"wrote {write_kserve(bundle, kserve, called, storage_uri, max_batch)}", err=True)


for _command in (make_demo_command(run), *COMMANDS, *PIPELINE_COMMANDS):
    main.add_command(_command)


def _load(recipe: Path, overrides: Sequence[str], allow_factory: Sequence[str]) -> Any:
    from glprune.schema.recipe_loading import load_recipe

    return load_recipe(recipe, overrides).allowing(allow_factory or None)


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr)  # rich honours NO_COLOR and plain pipes


if __name__ == "__main__":
    main()
