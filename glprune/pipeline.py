"""The whole flow, one way.

recipe -> data, model -> groups -> search (path, removal, refit, again) -> export -> measurement ->
report -> bundle.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glprune._plugins import packages
from glprune._version import __version__
from glprune.data.sharding import ShardedSplit
from glprune.data.splits import first_rows, identity
from glprune.errors import ModelError, NonFiniteError, UsageError
from glprune.evaluation.baselines import measure_baselines
from glprune.evaluation.drop_cost import measure_drop_costs
from glprune.evaluation.proxies import measure_proxies
from glprune.evaluation.report_builder import RunResults, TestMeasurements, make_report
from glprune.evaluation.segments import measure_segments
from glprune.evaluation.stability import check_rows, measure_stability
from glprune.export.golden import tensors_in_model, write_golden, write_input_schema
from glprune.export.int8 import quantized
from glprune.export.latency import OnnxLatencyMeter
from glprune.export.metadata import Names, file_metadata, name_encodings
from glprune.export.onnx_runtime import EXPORT_TOLERANCE, OnnxFile, latency
from glprune.export.plugin_hooks import load_exporters, load_reporters, run_exporters, run_reporters
from glprune.export.shipped_model import file_columns, on_test_rows, write_onnx, write_shipped
from glprune.export.signature import dtype_name
from glprune.export.slim_network import (
    make_attributes,
    make_axes,
    make_buffers,
    make_constants,
    make_readers,
    save_weights,
)
from glprune.model.counting import macs, parameters
from glprune.model.prediction import predict
from glprune.model.standardize import StandardizedNetwork
from glprune.model.task import r2_score
from glprune.report.html import render_html
from glprune.report.markdown import render_markdown
from glprune.result import Result
from glprune.runtime.checkpoint import DistributedCheckpoint, tensors_digest
from glprune.runtime.determinism import reproducible
from glprune.runtime.events import Event, Listener, Notice, Stage, silent
from glprune.runtime.output_folder import OutputFolder, open_output_folder
from glprune.runtime.process_group import ProcessGroup, init_process_group
from glprune.runtime.worker_pool import is_parallel, make_worker_pool
from glprune.schema import bundle as bundles
from glprune.schema.manifest import write_manifest
from glprune.schema.plan import InputPlan, Plan
from glprune.schema.recipe import HIGHER_IS_BETTER, METRICS, Recipe, WorkersSpec
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.report import (
    Agreement,
    DropCosts,
    Metric,
    Quantized,
    Report,
    Size,
    Stability,
    report_schema,
)
from glprune.search.policy_removal import check_rules
from glprune.search.prepare import prepare
from glprune.search.search import search
from glprune.search.worker_setup import JobFactory, WorkerContextFactory

if TYPE_CHECKING:
    from glprune.pruning.removal import RemovalResult
    from glprune.runtime.process_pool import WorkerPool
    from glprune.search.job import Job
    from glprune.search.search import SearchResult
    from glprune.training.refit import RefitResult

LATENCY_BATCHES = (1, 256)
_ORIGINAL, _ZEROED = "original.onnx", "zeroed.onnx"
_PROCESSOR = "kind of processor"


def run(
    recipe: str | Path | Recipe,
    model: str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    trust_pickle: bool = False,
    allow_factory: Sequence[str] | None = None,
    reporters: Sequence[str] = (),
    on_event: Listener | None = None,
) -> Result:
    """Prune a trained network as a recipe says and leave a bundle.

    Args:
        recipe: A recipe file, or a recipe built in Python.
        model: The trained weights: a state dict (.pt, .pth) or .safetensors.
        out: The folder to write; default ``glprune-out/<recipe name>``.
        overwrite: Replace an older bundle at ``out``, and drop what a stopped run has done.
        resume: Go on from what a run that was stopped has done, if there is any: its bundle is the one
            an undisturbed run makes, but for times. What was done is kept in ``<out>.unfinished``.
        trust_pickle: Allow a fully pickled module, which runs code when it is read.
        allow_factory: Packages, modules and .py files (as the recipe writes them) that the recipe's
            factory, loader and plugins may be imported from; None: any.
        reporters: Plugins that are told the result (entry points of the group ``glprune.reporters``).
        on_event: Told what happens while it works.

    Returns:
        The bundle's folder and the report.

    Raises:
        RecipeError: The recipe is wrong.
        ModelError: The model file, its factory or its architecture cannot be used, or the exported
            file does not compute what the network does.
        DataError: The data cannot be used.
        TargetError: No network meets the target.
        UsageError: The output folder is taken, cannot be written or holds a stopped run.
    """
    rules = (recipe if isinstance(recipe, Recipe) else load_recipe(recipe)).allowing(allow_factory)
    folder = Path(out) if out is not None else default_folder(rules)
    told = load_reporters(reporters, rules.allowed)
    clock = _Clock(on_event or silent)
    with (
        reproducible(rules.seed, rules.threads),
        clock.naming(),
        init_process_group() as process_group,
    ):
        if not process_group.is_main:
            return _run_secondary_rank(rules, Path(model), folder, trust_pickle, process_group)
        with open_output_folder(folder, overwrite, resume) as space:
            report = _write_bundle(rules, Path(model), trust_pickle, space, process_group, clock)
        process_group.broadcast_object(report.model_dump(mode="json", by_alias=True))
    result = Result(folder, report)
    run_exporters(rules, result)
    run_reporters(told, result)
    return result


def _write_bundle(
    rules: Recipe,
    model: Path,
    trust_pickle: bool,
    space: OutputFolder,
    process_group: ProcessGroup,
    clock: _Clock,
) -> Report:
    """Make every file of the bundle."""
    stage = space.stage
    job = _prepare(rules, model, trust_pickle, clock)
    check_rows(job)
    _export_original(job, stage)
    identity = _identity(job, process_group)
    journal = space.checkpoint_log(identity)
    process_group.broadcast_object(identity)
    clock.seconds = journal.seconds
    job = replace(job, journal=journal)
    shared = _shared(job, process_group)
    if isinstance(shared.data.train, ShardedSplit) and (text := shared.data.train.note()):
        clock(Notice(text))
    job_factory = JobFactory(job.recipe, model, trust_pickle, OnnxLatencyMeter)
    chosen = search(shared, clock, _workers(job, job_factory, process_group))
    removed, fitted = chosen.removed, chosen.refit
    check_rules(job, removed)
    clock(Stage("export", "writing the network as ONNX"))
    exporter, names = _export(job, removed, fitted, stage)
    clock(Stage("measure", "running the ONNX files on the test split"))
    measured = _measure(job, chosen, exporter, names, stage)
    plan = _write_plan(job, removed, fitted, stage)
    write_golden(job, removed, stage)
    int8 = _quantized(job, removed, stage, clock)
    proxies = measure_proxies(job, chosen, stage, clock)
    baselines = measure_baselines(job, chosen, stage, clock)
    rebuild = WorkerContextFactory.of(job_factory, removed, fitted.network)
    stability, costs = _stability_and_drop_cost(job, chosen, rebuild, stage, clock)
    clock(Stage("report", "writing the report"))
    outcome = RunResults(
        job, chosen, measured, baselines, stability, costs, proxies, int8, stage, clock.seconds
    )
    report = make_report(outcome)
    bundles.write_json(stage / bundles.REPORT, report.model_dump(mode="json", by_alias=True))
    (stage / bundles.PAGE).write_text(render_html(report), encoding="utf-8")
    (stage / bundles.SUMMARY).write_text(render_markdown(report), encoding="utf-8")
    write_input_schema(report, plan, stage)
    bundles.write_json(stage / bundles.SCHEMA, report_schema())
    write_manifest(stage)
    return report


def _prepare(rules: Recipe, model: Path, trust_pickle: bool, listener: Listener) -> Job:
    """Prepare the job of a run, which can measure latency."""
    load_exporters(rules)  # a missing plugin is reported now, not after hours of training
    job = prepare(rules, model, trust_pickle, listener)
    return replace(job, make_latency_meter=OnnxLatencyMeter)


def _run_secondary_rank(
    rules: Recipe, model: Path, folder: Path, trust_pickle: bool, process_group: ProcessGroup
) -> Result:
    """Search beside the first process, which alone writes, and hear its report."""
    job = _prepare(rules, model, trust_pickle, silent)
    own = _identity(job, process_group)
    first = process_group.broadcast_object(own)
    # what another processor computes is compared by its results
    unlike = [name for name, value in own.items() if value != first[name] and name != _PROCESSOR]
    if unlike:
        raise UsageError(
            f"it has another {' and another '.join(unlike)} than process 0; give all processes the same."
        )
    search(_shared(job, process_group), silent)
    return Result(folder, Report.model_validate(process_group.broadcast_object(None)))


def _shared(job: Job, process_group: ProcessGroup) -> Job:
    """The job with this process's part of the training rows, and one journal for all processes."""
    if process_group.size == 1:
        return job
    return replace(
        job,
        data=replace(job.data, train=ShardedSplit(job.data.train, process_group)),
        journal=DistributedCheckpoint(job.journal, process_group),
        process_group=process_group,
    )


def default_folder(recipe: Recipe) -> Path:
    """Where a run writes when it is not told: ``glprune-out/<recipe name>``."""
    return Path("glprune-out") / (recipe.source.stem if recipe.source else "run")


def _identity(job: Job, process_group: ProcessGroup) -> dict[str, str]:
    """What a run's result is a function of; its names go on from "the stopped run had another"."""
    return {
        "recipe": hashlib.sha256(_result_relevant(job.recipe).to_yaml().encode()).hexdigest(),
        "model": tensors_digest(job.network.state_dict()),
        "data set": json.dumps(dict(job.data.digests), sort_keys=True),
        "set of plugins": json.dumps(packages(job.recipe.plugins), sort_keys=True),
        "number of threads": str(job.recipe.threads),
        "number of processes": str(process_group.size),
        "version of glprune": __version__,
        "version of PyTorch": torch.__version__,
        _PROCESSOR: torch.backends.cpu.get_cpu_capability(),
    }


def _result_relevant(recipe: Recipe) -> Recipe:
    """A recipe without what has no bearing on results."""
    return recipe.model_copy(update={"workers": WorkersSpec()})


class _Clock:
    """Pass events on and keep the wall seconds of every stage."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.seconds: dict[str, float] = {}
        self._name, self._start = "", time.perf_counter()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stage):
            now = time.perf_counter()
            if self._name:
                self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._start
            self._name, self._start = event.name, now
        self.listener(event)

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Name the stage in an error about numbers, which arise deep in a training."""
        try:
            yield
        except NonFiniteError as error:
            raise NonFiniteError(f"{self._name}: {error}") from None


def _export_original(job: Job, folder: Path) -> None:
    """Write the original network: one that cannot be exported is told before hours of training."""
    with torch.random.fork_rng(devices=[]):  # what is trained next must not depend on an exporter
        write_onnx(job, job.network, first_rows(job.data.test, 4), folder / _ORIGINAL)


def _export(job: Job, removed: RemovalResult, fitted: RefitResult, folder: Path) -> tuple[str, Names]:
    """Write the zeroed slim and the shipped network.

    Returns:
        The last one's exporter, and how it gives the names of its columns.
    """
    full = first_rows(job.data.test, 4)
    write_onnx(job, removed.network, removed.selection(full), folder / _ZEROED)
    ways = name_encodings(job)
    metadata = [file_metadata(job, removed, names) for names in ways]
    exported = write_shipped(job, removed, fitted.network, folder / bundles.ONNX, metadata)
    return exported.exporter, ways[exported.choice]


def _measure(job: Job, chosen: SearchResult, exporter: str, names: Names, folder: Path) -> TestMeasurements:
    removed, fitted, threads = chosen.removed, chosen.refit, job.recipe.threads
    shipped_columns = file_columns(job, removed)
    original = OnnxFile(folder / _ORIGINAL, threads)
    zeroed = OnnxFile(folder / _ZEROED, threads)
    final = OnnxFile(folder / bundles.ONNX, threads)
    before, target = predict(original, job.data.test, identity)
    between, _ = predict(zeroed, job.data.test, removed.selection)
    after, _, gap = on_test_rows(job, removed, fitted.network, final)
    if not gap <= EXPORT_TOLERANCE:
        raise ModelError(
            f"ONNX Runtime and PyTorch differ by {gap:.1e} on the test split (limit {EXPORT_TOLERANCE:.0e}); "
            "the slim model was not released. Try another export.opset."
        )
    values = [job.task.metrics(job.task.view(outputs), target) for outputs in (before, between, after)]
    for number, whose in enumerate(("original network", "slim network before the refit", "slim network")):
        _check_finite(values[number], whose)
    full = first_rows(job.data.test, max(LATENCY_BATCHES))
    measured = TestMeasurements(
        metrics=[
            Metric(
                name=name,
                higher_is_better=HIGHER_IS_BETTER[name],
                rows=len(target),
                original=values[0][name],
                zeroed=values[1][name],
                final=values[2][name],
            )
            for name in METRICS[job.task.kind]
        ],
        latency=[
            latency(original, final, full, shipped_columns(full), batch, threads) for batch in LATENCY_BATCHES
        ],
        size=_size(job, removed, fitted, folder),
        agreement=_agreement(job, before, after),
        difference=gap,
        rows=len(target),
        exporter=exporter,
        names=names,
        segments=measure_segments(job, before, after, target, chosen.outcomes),
    )
    (folder / _ORIGINAL).unlink()
    (folder / _ZEROED).unlink()
    return measured


def _quantized(job: Job, removed: RemovalResult, folder: Path, clock: _Clock) -> Quantized | None:
    """The file in 8-bit integers, where the recipe asks for one."""
    if job.recipe.export.quantize is None:
        return None
    clock(Stage("quantize", "writing and measuring the file in 8-bit integers"))
    return quantized(job, removed, folder, LATENCY_BATCHES)


def _check_finite(metrics: Mapping[str, float], whose: str) -> None:
    """Refuse to report what is not a number."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{name} of the {whose} on the test split is {value}; check the scale of columns and target."
            )


def _agreement(job: Job, before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Agreement]:
    """The outputs the task is not about against the original's; without labels it is about all."""
    if len(before) == 1:
        return []
    records = []
    for number, (name, old, new) in enumerate(zip(job.outputs.names, before, after, strict=True)):
        if number == job.outputs.predicted:
            continue
        share = r2_score(*(y.reshape(len(y), -1).double() for y in (new, old)))
        records.append(
            Agreement(
                name=name,
                r2=float(share) if bool(torch.isfinite(share)) else None,
                max_change=float((new.double() - old.double()).abs().max()),
                trained_for=job.outputs.predicted is None and job.task.scales[number] > 0,
            )
        )
    return records


def _size(job: Job, removed: RemovalResult, fitted: RefitResult, folder: Path) -> Size:
    full = first_rows(job.data.test, 1)
    return Size(
        parameters_before=parameters(job.network),
        parameters_after=parameters(fitted.network),
        macs_before=macs(job.network, full),
        macs_after=macs(fitted.network, removed.selection(full)),
        onnx_bytes_before=(folder / _ORIGINAL).stat().st_size,
        onnx_bytes_after=(folder / bundles.ONNX).stat().st_size,
    )


def _write_plan(job: Job, removed: RemovalResult, fitted: RefitResult, folder: Path) -> Plan:
    save_weights(fitted.network, folder / bundles.WEIGHTS)
    spec, sets = job.recipe.model, {g.name: g for g in job.input_groups}
    plan = Plan(
        factory=spec.factory,
        arguments=dict(spec.arguments),
        standardize=isinstance(job.network, StandardizedNetwork),
        inputs=[
            InputPlan(
                name=part.name,
                axis=part.axis,
                dtype=dtype_name(x),
                size=len(part.columns),
                kept=kept.tolist(),
                columns=list(part.columns) if part.axis is None else _metric_list(part.columns, kept),
                constants=make_constants(removed.plan, place),
                readers=make_readers(sets.get(part.name), removed.plan),
            )
            for place, (part, kept, x) in enumerate(
                zip(job.data.inputs, removed.columns, job.probe, strict=True)
            )
        ],
        axes=make_axes(job.network, removed.plan),
        attributes=make_attributes(removed.plan),
        buffers=make_buffers(fitted.network),
        in_model=tensors_in_model(folder),
    )
    bundles.write_json(folder / bundles.PLAN, plan.model_dump(mode="json"))
    (folder / bundles.RECIPE).write_text(job.recipe.to_yaml(), encoding="utf-8")
    return plan


def _stability_and_drop_cost(
    job: Job, chosen: SearchResult, rebuild: WorkerContextFactory, folder: Path, listener: Listener
) -> tuple[Stability | None, DropCosts | None]:
    """How firm the choice of features is, as far as the recipe asks, measured in other processes."""
    spec = job.recipe.stability
    if spec is None:
        return None, None
    with make_worker_pool(rebuild, job.recipe.workers, _engine(job)) as workers:
        stability = measure_stability(job, spec, chosen.outcomes, workers, listener)
        file = folder / bundles.ONNX
        costs = measure_drop_costs(job, chosen, file, workers, listener) if spec.drop_cost else None
    return stability, costs


def _engine(job: Job) -> str:
    return job.recipe.where("workers", "engine")


def _workers(
    job: Job, job_factory: JobFactory, process_group: ProcessGroup
) -> Callable[[], WorkerPool[Job]] | None:
    """What starts processes for paths side by side; None where they would bring nothing."""
    recipe = job.recipe
    timed = recipe.target.round_to == "auto"  # the clock is read at the end of a path
    if process_group.size > 1 or timed or not is_parallel(recipe.workers, recipe.threads):
        return None
    most = len(recipe.penalty.input_strength_list)
    return functools.partial(
        make_worker_pool, job_factory, recipe.workers, _engine(job), recipe.threads, most
    )


def _metric_list(columns: Sequence[str], positions: Tensor) -> list[str]:
    """The names at some positions."""
    return [columns[p] for p in positions.tolist()]
