"""Run the exporters and reporters that other packages provide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glprune._plugins import Plugin, PluginError, load_plugin
from glprune.audit.parsed_bundle import open_bundle
from glprune.audit.verify import integrity_findings
from glprune.errors import GlpruneError, UsageError

if TYPE_CHECKING:
    from glprune.result import Result
    from glprune.schema.recipe import Recipe


def load_reporters(names: Sequence[str], allowed: Sequence[str] | None = None) -> list[Plugin]:
    """Load the reporters of ``run --reporter``, before anything is trained.

    Raises:
        UsageError: See ``load_plugin``, or a name is given twice.
    """
    if len(set(names)) < len(names):
        raise UsageError("--reporter: a name is given twice; give each once.")
    return [load_plugin("glprune.reporters", name, "--reporter", allowed) for name in names]


def run_exporters(recipe: Recipe, result: Result) -> None:
    """Run the recipe's exporters, each with a folder of its own: ``<bundle>.<name>``.

    Raises:
        RecipeError: See ``load_plugin``.
        UsageError: Such a folder exists.
        PluginError: An exporter raises, or changes the bundle, which then differs from what was measured.
    """
    for plugin in load_exporters(recipe):
        folder = result.bundle.with_name(f"{result.bundle.name}.{plugin.name}")
        if folder.exists():
            raise UsageError(f"{folder} exists; remove it, or choose another --out.")
        folder.mkdir(parents=True)
        _run_guarded(plugin, result, result.bundle, folder)


def load_exporters(recipe: Recipe) -> list[Plugin]:
    """Load the recipe's exporters, in order."""
    where = recipe.where("export", "plugins")
    return [load_plugin("glprune.exporters", n, where, recipe.allowed) for n in recipe.export.plugins]


def run_reporters(reporters: Sequence[Plugin], result: Result) -> None:
    """Pass the result to each reporter.

    Raises:
        PluginError: A reporter raises, or changes the bundle.
    """
    for plugin in reporters:
        _run_guarded(plugin, result, result)


def _run_guarded(plugin: Plugin, result: Result, *arguments: Any) -> None:
    """Call a plugin and check that the bundle is unchanged."""
    try:
        plugin(*arguments)
    except GlpruneError as error:
        raise PluginError(f"{error} The bundle is written: {result.bundle}.") from error
    found = integrity_findings(open_bundle(result.bundle))
    if found:
        raise PluginError(f"{plugin.says} changed the bundle ({found[0]}); make it anew with --overwrite.")
