"""What of a bundle is evaluated: its models, and how their inputs and outputs are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glprune._files import unreadable_reason
from glprune.audit.findings import Finding, UnreadableError
from glprune.audit.limits import SECONDS
from glprune.audit.onnx_reader import NotOnnxError, parse
from glprune.audit.parsed_bundle import open_bundle
from glprune.audit.verify import refusals
from glprune.errors import UsageError
from glprune.metrics.scorer import Scorer
from glprune.schema import bundle as bundles
from glprune.schema.manifest import sha256

if TYPE_CHECKING:
    from glprune.schema.plan import Plan
    from glprune.schema.recipe import Recipe
    from glprune.schema.report import Report

Array = NDArray[Any]
FINAL, ORIGINAL, INT8 = "final", "original", "int8"


@dataclass(frozen=True)
class Subject:
    """A bundle whose models may be run.

    Attributes:
        folder: The bundle.
        report: Its report.
        plan: Its plan.
        recipe: Its resolved recipe, with the classes that the report states.
        models: ``final``, ``int8`` and ``original``, as far as they are there -> the ONNX file.
        notes: What the auditor should know of the models.
    """

    folder: Path
    report: Report
    plan: Plan
    recipe: Recipe
    models: Mapping[str, bytes]
    notes: tuple[str, ...]

    @property
    def scorer(self) -> Scorer:
        """Computes the metrics of the task."""
        return Scorer(self.report.task, self.recipe.model.output)

    @property
    def prediction(self) -> int:
        """Number of the output that the task predicts."""
        outputs, wanted = self.report.export.outputs, self.recipe.model.prediction
        names = [output.name for output in outputs]
        if len(outputs) == 1 or wanted is None:
            return 0
        if isinstance(wanted, int):
            return min(wanted, len(outputs) - 1)
        if wanted in names:
            return names.index(wanted)
        others = {f"output {number} of the network" for number in range(len(outputs))}
        return next((n for n, output in enumerate(outputs) if output.meaning not in others), 0)

    @property
    def scales(self) -> list[float] | None:
        """What each output is divided by in distillation; None where the report does not state it."""
        found = [output.scale for output in self.report.export.outputs]
        return None if None in found else [scale for scale in found if scale is not None]

    def view(self, outputs: Sequence[Array]) -> Array:
        """Return what metrics are computed from: the prediction, or all outputs in distillation."""
        if self.report.task != "distillation":
            return outputs[self.prediction]
        scaled = zip(outputs, self.scales or [1.0] * len(outputs), strict=True)
        return np.concatenate(
            [y.reshape(len(y), -1).astype(np.float64) / scale for y, scale in scaled if scale > 0], axis=1
        )

    def wanted(self, model: str) -> list[NDArray[np.int64] | None]:
        """Return the columns of the original inputs that a model takes; None: an input is taken whole."""
        takes_all = model == ORIGINAL or self.report.export.signature == "original"
        return [
            None
            if part.axis is None
            else np.arange(part.size)
            if takes_all
            else np.array(part.kept, dtype=np.int64)
            for part in self.plan.inputs
        ]


class RefusedError(UsageError):
    """The models of a bundle are not run: its files or their graphs are not what they should be.

    Args:
        bundle: The folder.
        findings: Why.
    """

    exit_code = 1

    def __init__(self, bundle: Path, findings: Sequence[Finding]) -> None:
        super().__init__(f"{bundle} is not run: {findings[0]}; `glprune verify` lists every finding.")


def open_subject(folder: Path, original: Path | None, seconds: float = SECONDS) -> Subject:
    """Open a bundle and the file of its original network.

    Args:
        folder: The bundle.
        original: ONNX file of the original network; default the one of the bundle, if it has any.
        seconds: Limit of the time to read the bundle.

    Raises:
        UnreadableError: The folder is not a bundle that this version can read.
        RefusedError: Its files were changed, or a graph is refused.
        UsageError: The original's file cannot be read.
    """
    found = refusals(folder, seconds)
    if found:
        raise RefusedError(folder, found)
    opened = open_bundle(folder)
    report, plan, recipe = opened.report, opened.plan, opened.recipe
    if report is None or plan is None or recipe is None:
        raise UnreadableError(f"{folder}: report, plan or recipe cannot be read.")
    repeated = _repeated(report)
    if repeated:
        raise RefusedError(folder, repeated)
    files = opened.files.contents
    models = {FINAL: files[bundles.ONNX]}
    models |= {INT8: files[bundles.INT8]} if bundles.INT8 in files and report.quantized is not None else {}
    notes: list[str] = []
    if original is not None:
        models[ORIGINAL] = _read(original)
        notes += _other_original(original, models[ORIGINAL], report)
    elif bundles.ORIGINAL in files:
        models[ORIGINAL] = files[bundles.ORIGINAL]
    recipe.set_source(folder / bundles.RECIPE, report.digests.recipe_resolved, {})
    return Subject(folder, report, plan, _with_classes(recipe, report), models, tuple(notes))


def _repeated(report: Report) -> list[Finding]:
    """Find figures that are stated twice: each would be measured as often."""
    attributes = report.segments.attributes if report.segments is not None else []
    lists = {
        "/export/outputs": [output.name for output in report.export.outputs],
        "/performance": [metric.name for metric in report.performance],
        "/agreement": [record.name for record in report.agreement],
        "/segments/attributes": [attribute.name for attribute in attributes],
    }
    for n, attribute in enumerate(attributes):
        lists[f"/segments/attributes/{n}/segments"] = [segment.value for segment in attribute.segments]
    return [
        Finding(bundles.REPORT, where, "states a name twice")
        for where, names in lists.items()
        if len(set(names)) < len(names)
    ]


def _read(path: Path) -> bytes:
    reason = unreadable_reason(path)
    if reason is not None:
        raise UsageError(f"--original: {path} {reason}.")
    raw = path.read_bytes()
    try:
        parse(raw)
    except NotOnnxError as error:
        what = str(error).partition(" (")[0]
        raise UsageError(
            f"--original: {path}: {what}; give the original network as ONNX, as a run writes it with "
            f"export.keep_original ({bundles.ORIGINAL})."
        ) from None
    return raw


def _other_original(path: Path, raw: bytes, report: Report) -> list[str]:
    """Say that a file of the original is not the one that the report was made with, or that it is unknown."""
    stated = report.digests.outputs.get(bundles.ORIGINAL)
    if stated is None:
        return [f"{path} is taken for the original network: the report states no digest of its ONNX file."]
    if stated != f"sha256:{sha256(raw)}":
        return [f"{path} is not the {bundles.ORIGINAL} of the report (its SHA-256 differs)."]
    return []


def _with_classes(recipe: Recipe, report: Report) -> Recipe:
    """Return the recipe with the classes in the order of the network's outputs."""
    if report.data.classes is None:
        return recipe
    data = recipe.data.model_copy(update={"classes": list(report.data.classes)})
    return recipe.model_copy(update={"data": data})
