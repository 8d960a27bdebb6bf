"""The whole flow of a run.

recipe -> data -> model -> groups -> path -> removal -> export -> evaluation -> report.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from glprune._plugins import packages
from glprune._user_code import network_errors
from glprune._version import __version__
from glprune.data.sharding import ShardedSplit
from glprune.data.splits import first_rows
from glprune.errors import NonFiniteError, UsageError, note_written
from glprune.evaluation.baselines import measure_baselines
from glprune.evaluation.drop_cost import measure_drop_costs
from glprune.evaluation.frontier import measure_frontier
from glprune.evaluation.measurements import ExportedFiles, measure_test_split
from glprune.evaluation.proxies import measure_proxies
from glprune.evaluation.report_builder import RunResults, make_report
from glprune.evaluation.stability import check_rows, measure_stability
from glprune.export.golden import write_golden, write_input_schema
from glprune.export.int8 import measure_int8
from glprune.export.latency import OnnxLatencyMeter
from glprune.export.metadata import file_metadata, name_encodings
from glprune.export.plan_writer import write_plan
from glprune.export.plugin_hooks import load_exporters, load_reporters, run_exporters, run_reporters
from glprune.export.shipped_model import ShippedModel, write_onnx, write_shipped
from glprune.report.html import render_html
from glprune.report.markdown import render_markdown
from glprune.result import Result
from glprune.runtime.checkpoint import DistributedCheckpoint, tensors_digest
from glprune.runtime.determinism import reproducible
from glprune.runtime.events import Event, Listener, Notice, Stage, silent
from glprune.runtime.output_folder import open_output_folder
from glprune.runtime.process_group import ALONE, ProcessGroup, init_process_group
from glprune.runtime.replay import write_steps
from glprune.runtime.worker_pool import Useful, is_parallel, make_worker_pool
from glprune.schema import bundle as bundles
from glprune.schema.manifest import write_manifest
from glprune.schema.recipe import Recipe, WorkersSpec
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.report import DropCosts, Quantized, Report, Stability, report_schema
from glprune.search.policy_removal import check_rules
from glprune.search.prepare import prepare
from glprune.search.search import search
from glprune.search.worker_setup import JobFactory, WorkerContextFactory

if TYPE_CHECKING:
    from glprune._plugins import Plugin
    from glprune.runtime.checkpoint import CheckpointLog
    from glprune.runtime.output_folder import OutputFolder
    from glprune.runtime.process_pool import WorkerPool
    from glprune.schema.plan import Plan
    from glprune.search.job import Job
    from glprune.search.search import SearchResult

LATENCY_BATCHES = (1, 256)
_ZEROED = "zeroed.onnx"
_PROCESSOR = "kind of processor"


def run(  # noqa: PLR0913 - the public entry point: each option is a keyword of its own
    recipe: str | Path | Recipe,
    model: str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    trust_pickle: bool = False,
    accept_original: bool = False,
    allow_factory: Sequence[str] | None = None,
    reporters: Sequence[str] = (),
    on_event: Listener | None = None,
    process_group: ProcessGroup | None = None,
) -> Result:
    """Prune a trained network as a recipe describes and write a bundle.

    Args:
        recipe: A recipe file, or a recipe built in Python.
        model: The trained weights: a state dict (.pt, .pth) or .safetensors.
        out: The folder to write; default ``glprune-out/<recipe name>``.
        overwrite: Replace an older bundle at ``out`` and discard the work of a stopped run.
        resume: Continue from the work of a stopped run, if there is any. Except for times, the bundle is
            the same as that of an undisturbed run. The work is kept in ``<out>.unfinished``.
        trust_pickle: Load a fully pickled module, which runs the code it contains.
        accept_original: Go on where the network, as it is loaded, does not look like the one that was
            trained: near chance, worse than the class shares alone, far from the base rate, or r2 <= 0.
        allow_factory: Packages, modules and .py files (as the recipe writes them) that the recipe's
            factory, loader and plugins may be imported from; None allows any.
        reporters: Plugins that receive the result (entry points of the group ``glprune.reporters``).
        on_event: Called with an event for every step of the run.
        process_group: The processes that run together, if the caller has joined them; default those that
            the environment names.

    Returns:
        The bundle's folder and the report.

    Raises:
        RecipeError: The recipe is wrong.
        ModelError: The model file, its factory or its architecture cannot be used, the network does not look
            trained, or the exported file does not compute what the network does.
        DataError: The data cannot be used.
        TargetError: No network meets the target.
        UsageError: The output folder exists, cannot be written or holds a stopped run.
    """
    recipe = (recipe if isinstance(recipe, Recipe) else load_recipe(recipe)).allowing(allow_factory)
    folder = Path(out) if out is not None else default_folder(recipe)
    plugins = load_reporters(reporters, recipe.allowed)
    source = JobFactory(recipe, Path(model), trust_pickle, OnnxLatencyMeter, accept_original)
    clock = StageClock(on_event or silent)
    with (
        reproducible(recipe.seed, recipe.threads),
        clock.name_errors(),
        contextlib.nullcontext(process_group) if process_group else init_process_group() as group,
        network_errors(),
    ):
        if not group.is_main:
            return _run_secondary_rank(source, folder, group)
        with open_output_folder(folder, overwrite, resume) as output:
            report = _write_bundle(source, output, folder, group, clock)
        group.broadcast_object(report.model_dump(mode="json", by_alias=True))
    return publish(Result(folder, report), recipe, plugins)


def run_unpublished(source: JobFactory, folder: Path, listener: Listener) -> Result:
    """Run a recipe in this process and write a bundle; neither exporters nor reporters receive it.

    Args:
        source: The recipe and the model.
        folder: The folder to write; it must not exist.
        listener: Called with an event for every step.
    """
    clock = StageClock(listener)
    with (
        reproducible(source.recipe.seed, source.recipe.threads),
        clock.name_errors(),
        network_errors(),
        open_output_folder(folder, overwrite=False, resume=False) as output,
    ):
        report = _write_bundle(source, output, folder, ALONE, clock)
    return Result(folder, report)


def _write_bundle(
    source: JobFactory, output: OutputFolder, folder: Path, group: ProcessGroup, clock: StageClock
) -> Report:
    """Run all steps and write the files of the bundle that will be at ``folder``."""
    job = _with_checkpoints(begin(source, output.stage, clock), output, group, clock)
    chosen = _search(job, source, group, clock)
    write_frontier(job.checkpoints, chosen, source, output.stage, folder)
    return finish(job, chosen, source, output.stage, clock)


def begin(source: JobFactory, folder: Path, clock: StageClock) -> Job:
    """Prepare the job and write the original network, before the search."""
    job = _prepare(source, clock)
    check_rows(job)
    _export_original(job, folder)
    return job


def finish(job: Job, chosen: SearchResult, source: JobFactory, folder: Path, clock: StageClock) -> Report:
    """Export and measure the network that was found and write every file of the bundle."""
    check_rules(job, chosen.removed)
    shipped = ShippedModel(job, chosen.removed, chosen.outcomes, chosen.refit.network, folder)
    files = _export(shipped, clock)
    plan, results = _evaluate(shipped, chosen, files, source, clock)
    clock(Stage("report", "writing the report"))
    return _write_report(make_report(results), plan, folder)


def publish(result: Result, recipe: Recipe, reporters: Sequence[Plugin]) -> Result:
    """Pass a finished bundle to the recipe's exporters and to reporters; return it."""
    try:
        run_exporters(recipe, result)
        run_reporters(reporters, result)
    except KeyboardInterrupt as error:
        note_written(error, result.bundle)
        raise
    return result


def write_frontier(
    log: CheckpointLog, chosen: SearchResult, source: JobFactory, folder: Path, out: Path
) -> None:
    """Write what ``select`` needs to ship another point; nothing where there is no frontier.

    Args:
        log: The steps of the search.
        chosen: The result of the search.
        source: Its recipe and model, whose paths from the bundle are recorded.
        folder: The bundle's files so far.
        out: The folder that they will be in.
    """
    if chosen.frontier:
        recipe = source.recipe.source
        place = os.path.relpath(recipe, out) if recipe is not None else None
        ends = {point.size: point.steps for point in chosen.frontier}
        write_steps(log, ends, folder, place, os.path.relpath(source.model, out))


def _prepare(source: JobFactory, listener: Listener) -> Job:
    """Prepare the job of a run, which can measure latency."""
    load_exporters(source.recipe)  # a missing plugin is reported now, not after hours of training
    job = prepare(
        source.recipe,
        source.model,
        source.trust_pickle,
        listener,
        accept_original=source.accept_original,
    )
    return replace(job, make_latency_meter=source.make_latency_meter)


def _with_checkpoints(job: Job, output: OutputFolder, process_group: ProcessGroup, clock: StageClock) -> Job:
    """Open the checkpoint log, which holds the work of a stopped run where this run resumes it."""
    identity = _identity(job, process_group)
    checkpoints = output.checkpoint_log(identity)
    process_group.broadcast_object(identity)
    clock.seconds = checkpoints.seconds
    for path in checkpoints.unusable:
        clock(Notice(f"{path} is damaged or of another version and is not used."))
    return replace(job, checkpoints=checkpoints)


def _search(job: Job, source: JobFactory, process_group: ProcessGroup, clock: StageClock) -> SearchResult:
    """Search with all processes and report how the rows are divided."""
    shared = _shared(job, process_group)
    if isinstance(shared.data.train, ShardedSplit) and (text := shared.data.train.note()):
        clock(Notice(text))
    return search(shared, clock, _workers(job, source, process_group, clock))


def _run_secondary_rank(source: JobFactory, folder: Path, process_group: ProcessGroup) -> Result:
    """Search beside the main process, which alone writes files, and receive its report."""
    job = _prepare(source, silent)
    identity = _identity(job, process_group)
    expected = process_group.broadcast_object(identity)
    # the results, not the processor, must be the same
    different = [name for name, value in identity.items() if value != expected[name] and name != _PROCESSOR]
    if different:
        raise UsageError(
            f"it has another {' and another '.join(different)} than process 0; give all processes the same."
        )
    search(_shared(job, process_group), silent)
    return Result(folder, Report.model_validate(process_group.broadcast_object(None)))


def _shared(job: Job, process_group: ProcessGroup) -> Job:
    """Give the job its process's part of the training rows and a checkpoint log shared by all processes."""
    if process_group.size == 1:
        return job
    return replace(
        job,
        data=replace(job.data, train=ShardedSplit(job.data.train, process_group)),
        checkpoints=DistributedCheckpoint(job.checkpoints, process_group),
        process_group=process_group,
    )


def default_folder(recipe: Recipe) -> Path:
    """Return the folder a run writes to by default: ``glprune-out/<recipe name>``."""
    return Path("glprune-out") / (recipe.source.stem if recipe.source else "run")


def _identity(job: Job, process_group: ProcessGroup) -> dict[str, str]:
    """Return what determines a result; error messages put "the stopped run had another" before a key."""
    return {
        "recipe": hashlib.sha256(_result_relevant(job.recipe).to_yaml().encode()).hexdigest(),
        "model": tensors_digest(job.loaded.module.state_dict()),
        "data set": json.dumps(dict(job.data.digests), sort_keys=True),
        "set of plugins": json.dumps(packages(job.recipe.plugins), sort_keys=True),
        "number of threads": str(job.recipe.threads),
        "number of processes": str(process_group.size),
        "version of glprune": __version__,
        "version of PyTorch": torch.__version__,
        _PROCESSOR: torch.backends.cpu.get_cpu_capability(),
    }


def _result_relevant(recipe: Recipe) -> Recipe:
    """Return the recipe without the options that do not change results."""
    return recipe.model_copy(update={"workers": WorkersSpec()})


class StageClock:
    """Passes events on and records the wall seconds of every stage."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.seconds: dict[str, float] = {}
        self._name, self._start = "", time.perf_counter()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Stage):
            now = time.perf_counter()
            if self._name:
                self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._start
            self._name, self._start = event.name, now
        self.listener(event)

    @contextlib.contextmanager
    def name_errors(self) -> Iterator[None]:
        """Add the stage to errors about non-finite numbers, which are raised deep in the training."""
        try:
            yield
        except NonFiniteError as error:
            error.args = (f"{self._name}: {error}",)  # the error keeps its notes
            raise


def _export_original(job: Job, folder: Path) -> None:
    """Write the original network first: one that cannot be exported must fail before hours of training."""
    with torch.random.fork_rng(devices=[]):  # training must not depend on an exporter's random numbers
        write_onnx(job, job.network, first_rows(job.data.test, 4), folder / bundles.ORIGINAL)


def _export(shipped: ShippedModel, clock: StageClock) -> ExportedFiles:
    """Write the slim network before the refit, and the shipped one."""
    clock(Stage("export", "writing the network as ONNX"))
    job, removed, folder = shipped.job, shipped.removed, shipped.folder
    rows = removed.selection(first_rows(job.data.test, 4))
    write_onnx(job, removed.network, rows, folder / _ZEROED)
    encodings = name_encodings(job)
    metadata = [file_metadata(job, removed, names) for names in encodings]
    result = write_shipped(job, removed, shipped.network, shipped.file, metadata)
    return ExportedFiles(
        original=folder / bundles.ORIGINAL,
        zeroed=folder / _ZEROED,
        shipped=shipped.file,
        exporter=result.exporter,
        names=encodings[result.choice],
    )


def _evaluate(
    shipped: ShippedModel,
    chosen: SearchResult,
    files: ExportedFiles,
    source: JobFactory,
    clock: StageClock,
) -> tuple[Plan, RunResults]:
    """Measure everything the report states and write the files that it refers to."""
    clock(Stage("measure", "running the ONNX files on the test split"))
    measured = measure_test_split(shipped, files, LATENCY_BATCHES)
    if not shipped.job.recipe.export.keep_original:
        files.original.unlink()
    files.zeroed.unlink()
    plan = write_plan(shipped)
    write_golden(shipped)
    quantized = _quantize(shipped, clock)
    proxies = measure_proxies(shipped, clock)
    baselines = measure_baselines(shipped.job, chosen, shipped.folder, clock)
    stability, drop_costs = _measure_stability(shipped, source, clock)
    results = RunResults(
        job=shipped.job,
        chosen=chosen,
        measured=measured,
        baselines=baselines,
        frontier=measure_frontier(shipped, chosen, clock),
        stability=stability,
        drop_costs=drop_costs,
        proxies=proxies,
        quantized=quantized,
        folder=shipped.folder,
        seconds=clock.seconds,
    )
    return plan, results


def _quantize(shipped: ShippedModel, clock: StageClock) -> Quantized | None:
    """Write and measure the file in 8-bit integers, where the recipe asks for one."""
    if shipped.job.recipe.export.quantize is None:
        return None
    clock(Stage("quantize", "writing and measuring the file in 8-bit integers"))
    return measure_int8(shipped, LATENCY_BATCHES)


def _measure_stability(
    shipped: ShippedModel, source: JobFactory, listener: Listener
) -> tuple[Stability | None, DropCosts | None]:
    """Measure in other processes how stable the selection is and what each kept feature is worth."""
    job = shipped.job
    spec = job.recipe.stability
    if spec is None:
        return None, None
    context = WorkerContextFactory.of(source, shipped.removed, shipped.network)
    with make_worker_pool(context, job.recipe.workers, _engine_key(job), listener=listener) as workers:
        stability = measure_stability(job, spec, shipped.outcomes, workers, listener)
        drop_costs = measure_drop_costs(shipped, workers, listener) if spec.drop_cost else None
    return stability, drop_costs


def _engine_key(job: Job) -> str:
    """Return where the recipe chooses the engine of worker processes, for error messages."""
    return job.recipe.where("workers", "engine")


def _workers(
    job: Job, source: JobFactory, process_group: ProcessGroup, listener: Listener
) -> Callable[[], WorkerPool[Job]] | None:
    """Return what starts processes for parallel paths; None where they would not help."""
    recipe = job.recipe
    measures_latency = (
        recipe.target.round_to == "auto"
    )  # at the end of a path; parallel work would disturb it
    if process_group.size > 1 or measures_latency or not is_parallel(recipe.workers, recipe.threads):
        return None
    useful = Useful(recipe.threads, len(recipe.penalty.input_strength_list))
    return functools.partial(make_worker_pool, source, recipe.workers, _engine_key(job), useful, listener)


def _write_report(report: Report, plan: Plan, folder: Path) -> Report:
    """Write the report as JSON, HTML and Markdown, both schemas, and the manifest of all files."""
    bundles.write_json(folder / bundles.REPORT, report.model_dump(mode="json", by_alias=True))
    (folder / bundles.PAGE).write_text(render_html(report), encoding="utf-8")
    (folder / bundles.SUMMARY).write_text(render_markdown(report), encoding="utf-8")
    write_input_schema(report, plan, folder)
    bundles.write_json(folder / bundles.SCHEMA, report_schema())
    write_manifest(folder)
    return report
