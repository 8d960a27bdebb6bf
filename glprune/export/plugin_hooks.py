"""Run the exporters and reporters that other packages provide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glprune._plugins import Plugin, PluginError, load_plugin
from glprune.audit.verify import integrity_findings, open_bundle
from glprune.errors import GlpruneError, UsageError

if TYPE_CHECKING:
    from glprune.result import Result
    from glprune.schema.recipe import Recipe


def load_reporters(names: Sequence[str], allowed: Sequence[str] | None = None) -> list[Plugin]:
    """The reporters of ``run --reporter``, before anything is trained.

    Raises:
        UsageError: See :func:`load_plugin`, or a name is there twice.
    """
    if len(set(names)) < len(names):
        raise UsageError("--reporter: a name is there twice; give each once.")
    return [load_plugin("glprune.reporters", name, "--reporter", allowed) for name in names]


def run_exporters(recipe: Recipe, result: Result) -> None:
    """Let the recipe's exporters write, each into a folder of its own: ``<bundle>.<name>``.

    Raises:
        RecipeError: See :func:`load_plugin`.
        UsageError: Such a folder exists.
        PluginError: One raises, or changes the bundle, which then is not what was measured.
    """
    for plugin in load_exporters(recipe):
        folder = result.bundle.with_name(f"{result.bundle.name}.{plugin.name}")
        if folder.exists():
            raise UsageError(f"{folder} exists; remove it, or choose another --out.")
        folder.mkdir(parents=True)
        _guarded(plugin, result, result.bundle, folder)


def load_exporters(recipe: Recipe) -> list[Plugin]:
    """The recipe's exporters, in order."""
    where = recipe.where("export", "plugins")
    return [load_plugin("glprune.exporters", n, where, recipe.allowed) for n in recipe.export.plugins]


def run_reporters(reporters: Sequence[Plugin], result: Result) -> None:
    """Tell each reporter the result.

    Raises:
        PluginError: One raises, or changes the bundle.
    """
    for plugin in reporters:
        _guarded(plugin, result, result)


def _guarded(plugin: Plugin, result: Result, *given: Any) -> None:
    try:
        plugin(*given)
    except GlpruneError as error:
        raise PluginError(f"{error} The bundle is written: {result.bundle}.") from error
    found = integrity_findings(open_bundle(result.bundle))
    if found:
        raise PluginError(f"{plugin.says} changed the bundle ({found[0]}); make it anew with --overwrite.")
