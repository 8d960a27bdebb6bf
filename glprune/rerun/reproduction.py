"""Run the recipe of a bundle again and compare what comes out with the bundle."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glprune.audit.parsed_bundle import open_bundle
from glprune.audit.verify import integrity_findings
from glprune.errors import UsageError
from glprune.export.latency import OnnxLatencyMeter
from glprune.pipeline import run_unpublished
from glprune.rerun.comparison import Difference, compare_bundles, same_environment
from glprune.rerun.consent import consented
from glprune.runtime.events import Listener, silent
from glprune.schema import bundle as bundles
from glprune.search.worker_setup import JobFactory
from glprune.tables.files import open_table

if TYPE_CHECKING:
    from glprune.audit.parsed_bundle import ParsedBundle
    from glprune.schema.recipe import Recipe
    from glprune.schema.report import Report

WHOLE = "file"
"""Key of ``data`` whose file holds all splits."""


@dataclass(frozen=True)
class Reproduction:
    """The result of a second run.

    Attributes:
        bundle: The bundle.
        environment: What differs from the environment of the bundle's run; empty where nothing does.
        rule: ``bytes``: everything but times must be the same; ``tolerances``: up to stated ones.
        to_the_byte: Whether everything but times is the same.
        differences: What was compared, and whether it agrees.
    """

    bundle: str
    environment: tuple[str, ...]
    rule: str
    to_the_byte: bool
    differences: tuple[Difference, ...]

    @property
    def exit_code(self) -> int:
        """0: reproduced; 1: not."""
        return 0 if all(found.agrees for found in self.differences) else 1


def reproduce(  # noqa: PLR0913 - a public entry point: each option is a keyword of its own
    bundle: str | Path,
    model: str | Path,
    data: Mapping[str, Path] | None = None,
    *,
    recipe: str | Path | None = None,
    folder: str | Path | None = None,
    out: str | Path | None = None,
    other_machine: bool = False,
    trust_pickle: bool = False,
    allow_factory: Sequence[str] | None = None,
    on_event: Listener | None = None,
) -> Reproduction:
    """Run the resolved recipe of a bundle again, in a temporary folder, and compare.

    Args:
        bundle: The bundle. Nothing in it is imported.
        model: The trained weights.
        data: ``file``, or ``train``, ``valid`` and ``test`` -> where the file is; the others are where the
            recipe says.
        recipe: A recipe of the caller's: code that it names may run, and paths are relative to its folder.
        folder: The folder that paths are relative to instead; default the recipe's or the working directory.
        out: Keep the new bundle here.
        other_machine: Compare with tolerances although platform and versions are the same.
        trust_pickle: Load a fully pickled module, which runs the code it contains.
        allow_factory: Packages, modules and .py files that code may be imported from; None allows what
            ``recipe`` names.
        on_event: Called with an event for every step.

    Raises:
        UsageError: The bundle was changed, or model or data are not those that it was made from.
        GlpruneError: The run fails; see ``glprune.run``.
    """
    opened, report, resolved = _open(Path(bundle))
    own = Path(recipe) if recipe is not None else None
    home = Path(folder) if folder is not None else own.parent if own is not None else Path()
    if home.resolve().is_relative_to(Path(bundle).resolve()):
        raise UsageError(f"{home} is inside {bundle}: nothing in a bundle is imported; give --folder.")
    allowed = consented(resolved, own, allow_factory, Path(bundle))
    located = _located(allowed, report, home, data or {})
    _check_inputs(report, located, Path(model))
    # the run of the bundle has judged the network
    source = JobFactory(located, Path(model), trust_pickle, OnnxLatencyMeter, accept_original=True)
    with _output(out) as place:
        again = open_bundle(run_unpublished(source, place, on_event or silent).bundle)
    return _compared(Path(bundle), opened, again, other_machine)


def _compared(folder: Path, opened: ParsedBundle, again: ParsedBundle, other_machine: bool) -> Reproduction:
    assert opened.report is not None
    assert again.report is not None
    if opened.report.digests.data != again.report.digests.data:
        raise UsageError(f"the data are not what {folder} was made from (their SHA-256 differs).")
    environment = tuple(same_environment(opened.report.run, again.report.run))
    rule = "tolerances" if environment or other_machine else "bytes"
    exact = tuple(compare_bundles(opened, again, "bytes"))
    to_the_byte = all(found.agrees for found in exact)
    if not to_the_byte and rule == "tolerances":
        exact = tuple(compare_bundles(opened, again, "tolerances"))
    return Reproduction(str(folder), environment, "bytes" if to_the_byte else rule, to_the_byte, exact)


def _open(folder: Path) -> tuple[ParsedBundle, Report, Recipe]:
    opened = open_bundle(folder)
    found = integrity_findings(opened)
    if found or opened.report is None or opened.recipe is None:
        raise UsageError(f"{folder} was changed: {found[0]}; `glprune verify` lists every finding.")
    return opened, opened.report, opened.recipe


def _located(recipe: Recipe, report: Report, folder: Path, data: Mapping[str, Path]) -> Recipe:
    """Say where the files of a recipe are, and under which name it was run.

    Raises:
        UsageError: The recipe reads no such file.
    """
    spec, places = recipe.data, {}
    for key, path in data.items():
        named = getattr(spec, key)
        if named is None:
            known = [k for k in (WHOLE, "train", "valid", "test") if getattr(spec, k) is not None]
            files = ", ".join(f"--data {'' if k == WHOLE else f'{k}='}FILE" for k in known)
            raise UsageError(
                f"--data: the recipe reads no data.{key}; "
                + (f"give {files}." if known else "its loader gives the rows: leave --data out.")
            )
        places[named] = path
    located = recipe.with_files(places)
    # the title of a report is the name of the recipe's file, where the recipe has none
    located.set_source(folder / f"{report.title}.yaml", report.digests.recipe, {})
    return located


def _check_inputs(report: Report, recipe: Recipe, model: Path) -> None:
    """Refuse another model or other files before anything is trained."""
    if not model.is_file():
        raise UsageError(f"{model}: no such file; give the trained model with --model.")
    if bundles.digest(model) != report.digests.model:
        raise UsageError(f"{model} is not the model that the bundle was made from (its SHA-256 differs).")
    for key, stated in report.digests.data.items():
        named = getattr(recipe.data, key, None)
        if not isinstance(named, str):
            continue
        if not recipe.path(named).exists():
            option = "" if key == WHOLE else f"{key}="
            raise UsageError(
                f"{recipe.path(named)}: no such file, the data.{key} of the recipe; give "
                f"--data {option}FILE, or with --folder the folder that it is in."
            )
        if open_table(recipe.path(named)).digest() != stated:
            raise UsageError(
                f"{recipe.path(named)} is not the data.{key} that the bundle was made from (its SHA-256 "
                "differs)."
            )


@contextlib.contextmanager
def _output(out: str | Path | None) -> Iterator[Path]:
    """Give the folder of the new bundle: one to keep, or a temporary one."""
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="glprune-") as folder:
        yield Path(folder) / "bundle"


def as_record(found: Reproduction) -> dict[str, Any]:
    """Convert the result of a second run to JSON values."""
    return {
        "schema": "glprune.reproduction/1",
        "bundle": found.bundle,
        "result": "reproduced" if found.exit_code == 0 else "NOT REPRODUCED",
        "exit_code": found.exit_code,
        "environment": list(found.environment),
        "rule": found.rule,
        "to_the_byte": found.to_the_byte,
        "differences": [vars(difference) for difference in found.differences],
    }
