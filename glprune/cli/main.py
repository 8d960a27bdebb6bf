"""The ``glprune`` command: parses arguments, calls the package, prints the result, sets the exit code."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import io
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from glprune._escaping import escape_for_terminal
from glprune._user_code import user_code
from glprune._version import __version__
from glprune.cli.audit import COMMANDS
from glprune.cli.ci import COMMANDS as PIPELINE_COMMANDS
from glprune.cli.ci import ci_option
from glprune.cli.demo import make_demo_command
from glprune.cli.evaluate import evaluate
from glprune.cli.reproduce import EPILOG as REPRODUCE_EPILOG
from glprune.cli.reproduce import data_files, print_reproduction
from glprune.cli.signals import complete, ignore_signals, interrupting_signals
from glprune.errors import (
    ModelError,
    PeerFailedError,
    UsageError,
    exit_code,
    is_written,
    note_written,
    user_message,
)
from glprune.model.weights.file import check_weights_file
from glprune.runtime.events import Notice, OriginalMeasured, Stage

if TYPE_CHECKING:
    from rich.console import Console

    from glprune.cli.console import ProgressReporter
    from glprune.result import Result
    from glprune.runtime.events import Event, Listener
    from glprune.runtime.process_group import ProcessGroup
    from glprune.schema.recipe import Recipe

_EPILOG = (
    "Exit codes: 0 done; 1 a worker, process or plugin failed, or memory ran out; 2 usage, recipe or output "
    "folder; 3 model; 4 data; 5 target cannot be reached; 129 hung up; 130 interrupted; 143 terminated."
)
_START = Stage("start", "loading PyTorch")  # takes seconds, and so must not come before the first line
_ENDINGS = (BrokenPipeError, click.exceptions.Exit, click.Abort)  # end a command without an error
_MAX_LENGTH = 2000  # characters of a message; names in it may be of any length
# packages that auditors need not install
_NOT_FOR_AUDITORS = ("torch", "torch_pruning", "pyarrow", "scipy", "onnxscript", "matplotlib")


class _Group(click.Group):
    """Turn the errors that a user can cause into one line and an exit code."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not sys.warnoptions:  # warnings of libraries are for programmers, not for users
            warnings.simplefilter("ignore")
        try:
            return super().__call__(*args, **kwargs)
        finally:
            atexit.register(ignore_signals)  # the last one registered is the first one called

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(
                    errors="backslashreplace"
                )  # names may hold letters the terminal cannot show
        try:
            return super().main(*args, **(kwargs | {"standalone_mode": False}))
        except (Exception, KeyboardInterrupt) as error:
            _exit_for(error)
            raise  # a bug keeps its traceback


def _exit_for(error: BaseException) -> None:
    """End the process with a message and an exit code; return if the error is a bug."""
    if isinstance(error, click.exceptions.Exit):
        sys.exit(error.exit_code)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        sys.exit(error.exit_code)
    if isinstance(error, click.ClickException):
        _fail(_usage(error), error.exit_code)
    if isinstance(error, click.Abort):
        error = error.__cause__ or KeyboardInterrupt()
    if isinstance(error, KeyboardInterrupt):
        left = " ".join(getattr(error, "__notes__", ())) or "nothing was written"
        _fail(f"{user_message(error)}; {left}", exit_code(error))
    if isinstance(error, ModuleNotFoundError) and error.name in _NOT_FOR_AUDITORS:
        _fail(f"this command needs {error.name}; install glprune with its dependencies", 2)
    if isinstance(error, BrokenPipeError):
        _drop_output()
        sys.exit(0)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO):
        _drop_output()
    text = user_message(error)
    if text is not None:
        _fail(text, exit_code(error) or 1)


@contextlib.contextmanager
def _process_group(out: Path) -> Iterator[ProcessGroup]:
    """Join the processes of a launcher; if the run stops, report once why and what is kept of its work."""
    from glprune.runtime.process_group import ALONE, init_process_group

    group, before = ALONE, _identity(out)
    try:
        with interrupting_signals(), init_process_group() as group:
            yield group
    except (Exception, KeyboardInterrupt) as error:
        text = user_message(error)
        if text is None:  # a bug
            if left := _what_is_left(error, out, group):
                error.__notes__ = [f"{left[0].upper()}{left[1:]}"]
            raise
        if isinstance(error, KeyboardInterrupt) and _identity(out) not in (None, before):
            note_written(error, out)
        if group.reported_by_main:
            sys.exit(exit_code(error))
        if left := _what_is_left(error, out, group):
            _fail(f"{text.rstrip('.')}; {left}", exit_code(error))
        raise


def _identity(folder: Path) -> int | None:
    """Return what tells a folder from one that replaces it; None where there is none."""
    return folder.stat().st_ino if folder.exists() else None


def _what_is_left(error: BaseException, out: Path, group: ProcessGroup) -> str:
    """Say what is left of a run and how to continue it; empty where an error of this run left nothing."""
    from glprune.runtime.output_folder import is_resumable, keeps_work, unfinished_path

    stopped = isinstance(error, KeyboardInterrupt | PeerFailedError)
    if is_written(error) or (not keeps_work(error) and not (stopped and is_resumable(out))):
        notes = " ".join(getattr(error, "__notes__", ()))
        return notes or ("nothing was written" if stopped else "")
    dropped = {"--resume"} if out.exists() else {"--resume", "--overwrite"}
    command = shlex.join(["glprune", *(a for a in sys.argv[1:] if a not in dropped), "--resume"])
    if group.size > 1:
        command = f"as many processes, each {command}"
    return f"finished work is kept in {unfinished_path(out)}. To continue: {command}"


def _drop_output() -> None:
    """Send further output to nowhere, so that printing cannot fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: click.ClickException) -> str:
    """Describe a wrong command line in one line, with the command that shows help."""
    context = getattr(error, "ctx", None)
    where = f"; see {context.command_path} --help" if context is not None else ""
    return f"{error.format_message().rstrip('.')}{where}."


def _fail(message: str, code: int) -> NoReturn:
    line = escape_for_terminal(" ".join(message.split()))
    click.echo(f"glprune: {line if len(line) <= _MAX_LENGTH else line[:_MAX_LENGTH] + '...'}", err=True)
    sys.exit(code)


_recipe = click.argument("recipe", type=click.Path(path_type=Path))
_model = click.argument("model", type=click.Path(path_type=Path))
_set = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe."
)
_trust = click.option(
    "--trust-pickle", is_flag=True, help="Read a fully pickled model; this runs any code it contains."
)
_allow = click.option(
    "--allow-factory",
    "allow_factory",
    multiple=True,
    metavar="PACKAGE",
    help="Import the recipe's factory, loader and plugins only from this package, module or .py file.",
)
_accept = click.option(
    "--accept-original",
    is_flag=True,
    help="Go on where the network, as it is loaded, does not look like the one that was trained.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
_quiet = click.option("--quiet", is_flag=True, help="Print neither progress nor the result.")


@click.group(cls=_Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glprune")
def main() -> None:
    """Prune trained PyTorch networks with group penalties; write a slim ONNX model and a report."""


@main.command(epilog=_EPILOG)
@_recipe
@_model
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write [glprune-out/RECIPE].")
@click.option("--overwrite", is_flag=True, help="Replace an older bundle or a stopped run.")
@click.option("--resume", is_flag=True, help="Continue a stopped run, if there is one.")
@click.option(
    "--reporter",
    "reporters",
    multiple=True,
    metavar="NAME",
    help="Plugin that is called with the result; repeatable.",
)
@_set
@_trust
@_accept
@_allow
@ci_option
@click.option("--mlflow", is_flag=True, help="Log parameters, path, bundle and model to MLflow.")
@click.option("--mlflow-model", metavar="NAME", help="Register the logged model under this name.")
@click.option("--mlflow-alias", metavar="ALIAS", help="Point this alias at the registered version.")
@_json
@_quiet
def run(**options: Any) -> None:
    """Prune MODEL (.pt or .safetensors) with the settings of RECIPE and write a bundle."""
    _run(_RunOptions(**options))


@dataclass(frozen=True)
class _RunOptions:
    """The arguments and options of ``glprune run``."""

    recipe: Path
    model: Path
    out: Path | None
    overwrite: bool
    resume: bool
    reporters: Sequence[str]
    overrides: Sequence[str]
    trust_pickle: bool
    accept_original: bool
    allow_factory: Sequence[str]
    ci: str
    mlflow: bool
    mlflow_model: str | None
    mlflow_alias: str | None
    as_json: bool
    quiet: bool

    def __post_init__(self) -> None:
        if (self.mlflow_model or self.mlflow_alias) and not self.mlflow:
            raise UsageError("--mlflow-model and --mlflow-alias need --mlflow.")
        if self.mlflow_alias and not self.mlflow_model:
            raise UsageError("--mlflow-alias needs --mlflow-model: an alias belongs to a registered model.")

    @property
    def folder(self) -> Path:
        """The folder to write."""
        return self.out or Path("glprune-out") / self.recipe.stem


def _run(options: _RunOptions) -> None:
    from glprune.integrations.ci.systems import ci_context, publish_run, systems
    from glprune.runtime.launcher import is_main_process, process_info

    ci_systems = systems(options.ci) if is_main_process() else ()
    load = functools.cache(functools.partial(_load, options.recipe, options.overrides, options.allow_factory))
    with ci_context(ci_systems, "run", options.folder), _progress(options.quiet) as progress:
        if process_info().size == 1:  # several processes report an error once, when all have joined
            check_weights_file(options.model, load(), options.trust_pickle)
        if is_main_process():
            progress(_START)
        with _process_group(options.folder) as group, _tracked(options, group) as log:
            result = _run_pipeline(options, load(), group, progress)
            if not group.is_main:
                return
            log(result)
    with complete(result.bundle):
        _print_result(result, options.as_json, options.quiet)
        if ci_systems:
            publish_run(ci_systems, result.report, result.bundle)


def _run_pipeline(options: _RunOptions, recipe: Recipe, group: ProcessGroup, progress: Listener) -> Result:
    """Run the pipeline."""
    from glprune.pipeline import run as run_pipeline
    from glprune.runtime.launcher import launcher_warning

    with _recipes_code():
        if warning := launcher_warning():
            progress(Notice(warning))
        return run_pipeline(
            recipe,
            options.model,
            options.out,
            overwrite=options.overwrite,
            resume=options.resume,
            trust_pickle=options.trust_pickle,
            accept_original=options.accept_original,
            reporters=options.reporters,
            on_event=progress,
            process_group=group,
        )


@contextlib.contextmanager
def _recipes_code() -> Iterator[None]:
    """Keep code that the recipe names from ending the program, and what it prints out of the result."""
    code = "The network, or other code that the recipe names,"
    with contextlib.redirect_stdout(sys.stderr), user_code(ModelError, code, passing=(Exception,)):
        try:
            yield
        except _ENDINGS as error:
            with user_code(ModelError, code):
                raise error


def _print_result(result: Result, as_json: bool, quiet: bool) -> None:
    """Print the report, as JSON or as a table."""
    from glprune.cli.console import print_report

    if as_json:
        report = result.report.model_dump(mode="json", by_alias=True)
        click.echo(json.dumps({"bundle": str(result.bundle), "report": report}))
    elif not quiet:
        print_report(_console(), result.report, str(result.bundle))


@contextlib.contextmanager
def _tracked(options: _RunOptions, group: ProcessGroup) -> Iterator[Callable[[Result], object]]:
    """Log the result of a run to MLflow if --mlflow is given."""
    if not (options.mlflow and group.is_main):
        yield lambda result: None
        return
    from glprune.integrations.mlflow import tracked

    with tracked(options.folder.name, options.mlflow_model, options.mlflow_alias) as log:
        yield log


@main.command(epilog=_EPILOG)
@_recipe
@_model
@_set
@_trust
@_accept
@_allow
@_json
def inspect(
    recipe: Path,
    model: Path,
    overrides: Sequence[str],
    trust_pickle: bool,
    accept_original: bool,
    allow_factory: Sequence[str],
    as_json: bool,
) -> None:
    """Show which units a run would group and remove, and how long it would take. Nothing is written."""
    from glprune.cli import console

    loaded = _load(recipe, overrides, allow_factory)
    check_weights_file(model, loaded, trust_pickle)
    output = _console(sys.stdout)  # before what the recipe's code prints is sent elsewhere
    with _progress(quiet=not sys.stderr.isatty()) as progress, _recipes_code():
        progress(_START)
        from glprune.inspection import inspect as run_inspection

        def on_event(event: Event) -> None:
            if isinstance(event, Stage):
                progress(event)
            elif isinstance(event, OriginalMeasured) and not as_json:  # before a network at chance stops it
                console.print_original(output, event)

        inspection = run_inspection(
            loaded, model, trust_pickle=trust_pickle, accept_original=accept_original, on_event=on_event
        )
    if as_json:
        click.echo(json.dumps(console.as_json(inspection)))
    else:
        console.print_inspection(output, inspection)


@main.command(epilog=_EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--features", type=click.IntRange(1), required=True, help="Size of the frontier's network to ship."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write [BUNDLE-FEATURES].")
@click.option("--overwrite", is_flag=True, help="Replace an older bundle.")
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="The recipe of the bundle; code that it names may run.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="The trained model of the bundle.",
)
@_trust
@_allow
@_json
@_quiet
def select(
    as_json: bool, quiet: bool, features: int, bundle: Path, allow_factory: Sequence[str], **options: Any
) -> None:
    """Ship another network of BUNDLE's frontier (target.frontier) without searching again."""
    with interrupting_signals(), _progress(quiet) as progress, _recipes_code():
        progress(_START)
        from glprune.rerun.selection import select as select_point

        result = select_point(
            bundle, features, allow_factory=allow_factory or None, on_event=progress, **options
        )
    with complete(result.bundle):
        _print_result(result, as_json, quiet)


@main.command(epilog=REPRODUCE_EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--model", type=click.Path(path_type=Path), required=True, help="The trained model of the bundle."
)
@click.option(
    "--data",
    multiple=True,
    metavar="[SPLIT=]FILE",
    help="The data file of the bundle; train=FILE, valid=FILE, test=FILE where it has three.",
)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="Your recipe: code that it names may run. Otherwise give --allow-factory.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Folder that paths are relative to, with the code [that of --recipe, or the working directory].",
)
@click.option("--out", type=click.Path(path_type=Path), help="Keep the new bundle in this folder.")
@click.option(
    "--other-machine",
    is_flag=True,
    help="Compare with tolerances although platform and versions are the same.",
)
@_trust
@_allow
@_json
@_quiet
def reproduce(
    data: Sequence[str], allow_factory: Sequence[str], as_json: bool, quiet: bool, **options: Any
) -> None:
    """Run the recipe of BUNDLE again and compare features, weights, metrics and files."""
    files = data_files(data)
    with interrupting_signals(), _progress(quiet) as progress, _recipes_code():
        progress(_START)
        from glprune.rerun.reproduction import as_record
        from glprune.rerun.reproduction import reproduce as run_again

        found = run_again(data=files, allow_factory=allow_factory or None, on_event=progress, **options)
    if as_json:
        click.echo(json.dumps(as_record(found), indent=2))
    elif not quiet:
        print_reproduction(_console(), found)
    sys.exit(found.exit_code)


@main.command(epilog=_EPILOG)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--target", metavar="COLUMN", help="Column to predict; guessed if it is not given.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write; default standard output.")
def init(data: Path, target: str | None, out: Path | None) -> None:
    """Write a commented recipe for DATA (.csv, .tsv or .parquet)."""
    from glprune.cli.starter_recipe import starter_recipe

    text = starter_recipe(data, out.parent if out else Path(), target)
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
@click.option(
    "--triton",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Triton model repository to add the model to.",
)
@click.option(
    "--kserve",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to write the models and the KServe YAML to.",
)
@click.option("--name", help="Name of the model [the bundle's folder].")
@click.option(
    "--storage-uri",
    default="pvc://models/models",
    show_default=True,
    help="Storage URI of the models, for --kserve.",
)
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
    """Write BUNDLE's model in the layout of the Triton Inference Server or of KServe."""
    from glprune.integrations.triton_kserve import write_kserve, write_triton

    if triton is None and kserve is None:
        raise UsageError("export-server: name --triton DIR, --kserve DIR or both.")
    model_name = name or bundle.resolve().name.lower().replace("_", "-")
    if triton is not None:
        click.echo(f"wrote {write_triton(bundle, triton, model_name, max_batch)}", err=True)
    if kserve is not None:
        click.echo(f"wrote {write_kserve(bundle, kserve, model_name, storage_uri, max_batch)}", err=True)


for _command in (make_demo_command(run), *COMMANDS, evaluate, *PIPELINE_COMMANDS):
    main.add_command(_command)


def _load(recipe: Path, overrides: Sequence[str], allow_factory: Sequence[str]) -> Recipe:
    from glprune.schema.recipe_loading import load_recipe

    return load_recipe(recipe, overrides).allowing(allow_factory or None)


def _progress(quiet: bool = False) -> ProgressReporter:
    """Show the progress of a command on standard error."""
    from glprune.cli.console import ProgressReporter

    return ProgressReporter(_console(sys.stderr), quiet)


def _console(stream: TextIO | None = None) -> Console:
    """Return a console on a stream, by default standard output."""
    from glprune.cli.console import PipedConsole

    return PipedConsole(file=stream)  # rich honours NO_COLOR and plain pipes


if __name__ == "__main__":
    main()
