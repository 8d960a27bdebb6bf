"""Ship another point of a bundle's frontier without searching again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from glprune._escaping import escape_for_terminal
from glprune._user_code import network_errors
from glprune._wording import counted
from glprune.audit.findings import UnreadableError
from glprune.audit.parsed_bundle import open_bundle
from glprune.audit.verify import integrity_findings
from glprune.errors import UsageError
from glprune.export.latency import OnnxLatencyMeter
from glprune.export.plugin_hooks import load_reporters
from glprune.pipeline import StageClock, begin, finish, publish, write_frontier
from glprune.rerun.consent import consented
from glprune.result import Result
from glprune.runtime.determinism import reproducible
from glprune.runtime.events import Listener, Stage, silent
from glprune.runtime.output_folder import open_output_folder
from glprune.runtime.replay import read_steps
from glprune.schema import bundle as bundles
from glprune.search.search import search
from glprune.search.worker_setup import JobFactory

if TYPE_CHECKING:
    from glprune.schema.frontier import StoredFrontier
    from glprune.schema.recipe import Recipe
    from glprune.schema.report import Report


def select(  # noqa: PLR0913 - a public entry point: each option is a keyword of its own
    bundle: str | Path,
    features: int,
    out: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    model: str | Path | None = None,
    overwrite: bool = False,
    trust_pickle: bool = False,
    allow_factory: Sequence[str] | None = None,
    reporters: Sequence[str] = (),
    on_event: Listener | None = None,
) -> Result:
    """Ship another point of a bundle's frontier, without searching again.

    The steps of the search are read from the bundle. Every removal is made and certified again; then the
    network is exported, measured and reported as by a run with ``target.max_features: <features>``.

    Args:
        bundle: A bundle of a recipe with ``target.frontier``.
        features: The size of the point, as the recipe asked for it.
        out: The folder to write; default ``<bundle>-<features>``.
        recipe: The recipe, from whose folder data and code are found and whose code may run. No path that
            the bundle names is followed; None only for a bundle of a recipe made in Python.
        model: The trained weights.
        overwrite: Replace an older bundle at ``out``.
        trust_pickle: Load a fully pickled module, which runs the code it contains.
        allow_factory: Packages, modules and .py files that code may be imported from; None allows what
            ``recipe`` names.
        reporters: Plugins that receive the result (entry points of the group ``glprune.reporters``).
        on_event: Called with an event for every step.

    Returns:
        The new bundle's folder and the report.

    Raises:
        UsageError: The bundle has no such point or was changed; recipe, model or data are missing or
            not those that it was made from; it names code that neither ``recipe`` nor ``allow_factory`` does;
            or the output folder exists.
        GlpruneError: Recipe, model or data cannot be read; see ``run``.
    """
    stored = _open(Path(bundle), features)
    recipe_path, weights = stored.inputs(recipe, model)
    chosen_recipe = consented(stored.recipe(features, recipe_path), recipe_path, allow_factory, Path(bundle))
    # the run of the bundle has judged the network
    source = JobFactory(chosen_recipe, weights, trust_pickle, OnnxLatencyMeter, accept_original=True)
    folder = Path(out) if out is not None else default_selection(Path(bundle), features)
    if Path(bundle).resolve() in folder.resolve().parents:
        raise UsageError(f"{folder} is inside {bundle}, which it would change; give another --out.")
    plugins = load_reporters(reporters, chosen_recipe.allowed)
    clock = StageClock(on_event or silent)
    with (
        reproducible(chosen_recipe.seed, chosen_recipe.threads),
        clock.name_errors(),
        network_errors(),
        open_output_folder(folder, overwrite, resume=False) as output,
    ):
        job = begin(source, output.stage, clock)
        stored.check_data(job.data.digests)
        log = read_steps(stored.frontier, Path(bundle))
        clock(
            Stage(
                "replay",
                f"repeating the search to {counted(features, 'feature')} from its steps, without training",
            )
        )
        chosen = search(replace(job, checkpoints=log), silent)
        write_frontier(log, chosen, source, output.stage, folder)
        report = finish(job, chosen, source, output.stage, clock)
    return publish(Result(folder, report), chosen_recipe, plugins)


def default_selection(bundle: Path, features: int) -> Path:
    """Return the folder that a selection is written to by default: ``<bundle>-<features>``."""
    return bundle.with_name(f"{bundle.resolve().name}-{features}")


@dataclass(frozen=True)
class _StoredBundle:
    """A bundle with a frontier whose files match its manifest."""

    folder: Path
    report: Report
    resolved: Recipe
    frontier: StoredFrontier

    def inputs(self, recipe: str | Path | None, model: str | Path | None) -> tuple[Path | None, Path]:
        """Return recipe and trained weights as the caller gives them; the bundle only says what they were.

        Raises:
            UsageError: One is not given, missing, or not that of the bundle.
        """
        stated = {"recipe": self.frontier.recipe, "model": self.frontier.model}
        given = {"recipe": recipe, "model": model}
        missing = [what for what, named in stated.items() if named is not None and given[what] is None]
        if missing or model is None:
            options = " ".join(
                f"--{what} {os.path.normpath(self.folder / str(stated[what]))}" for what in missing
            )
            raise UsageError(
                f"{self.folder}: no path that a bundle names is followed; if these files are yours, give "
                f"{escape_for_terminal(options)}."
            )
        digests = self.report.digests
        path = None if recipe is None else self._path(Path(recipe), "recipe", digests.recipe)
        return path, self._path(Path(model), "model", digests.model)

    def recipe(self, features: int, path: Path | None) -> Recipe:
        """Return the recipe that ships ``features``, with the folder of its file."""
        asked = self.resolved.target
        sizes: Sequence[int] | str | None = asked.frontier
        if asked.max_features is not None:  # it may be a size that the frontier does not name
            sizes = [point.size for point in self.frontier.points]
        target = asked.model_copy(update={"max_features": features, "frontier": sizes})
        recipe = self.resolved.model_copy(update={"target": target})
        if path is not None:  # else it was made in Python: its paths are relative to the working directory
            recipe.set_source(path, self.report.digests.recipe, {})
        return recipe

    def check_data(self, digests: Mapping[str, str]) -> None:
        """Compare the data with those that the bundle was made from.

        Raises:
            UsageError: They differ.
        """
        stated = self.report.digests.data
        different = sorted(name for name in {*stated, *digests} if stated.get(name) != digests.get(name))
        if different:
            raise UsageError(
                f"the data ({', '.join(different)}) are not what {self.folder} was made from (their SHA-256 "
                "differs); give back the same data, or run again."
            )

    def _path(self, path: Path, what: str, digest: str) -> Path:
        if not path.is_file():
            raise UsageError(f"{path}: no such {what}.")
        if bundles.digest(path) != digest:
            raise UsageError(
                f"{path} is not the {what} that {self.folder} was made from (its SHA-256 differs); "
                f"give --{what}."
            )
        return path


def _open(folder: Path, features: int) -> _StoredBundle:
    """Open a bundle that has a point of some size.

    Raises:
        UsageError: The bundle was changed, has no frontier, or has no such point.
    """
    try:
        opened = open_bundle(folder)
    except UnreadableError as error:
        raise UsageError(f"{str(error).rstrip('.')}; give the folder of a bundle with a frontier.") from error
    found = integrity_findings(opened)
    report, recipe, frontier = opened.report, opened.recipe, opened.frontier
    if found or report is None or recipe is None:
        raise UsageError(f"{folder} was changed: {found[0]}; `glprune verify` lists every finding.")
    if report.frontier is None or frontier is None:
        raise UsageError(
            f"{folder} has no frontier; run its recipe with target.frontier, such as "
            "--set target.frontier=auto."
        )
    sizes = [point.size for point in frontier.points]
    if features not in sizes:
        raise UsageError(
            f"{folder} has no network of {counted(features, 'feature')}; its frontier has "
            f"{', '.join(map(str, sizes))}."
        )
    return _StoredBundle(folder, report, recipe, frontier)
