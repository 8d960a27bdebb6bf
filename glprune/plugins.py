"""Plugins: code of other packages that a recipe or an option names, found by Python entry points.

A package offers a plugin by an entry point in one of the groups below (in its ``pyproject.toml``:
``[project.entry-points."glprune.data"]``, then ``warehouse = "my_package:rows"``). Nothing of it is
imported before a recipe or an option says its name.

- ``glprune.loaders``, named by ``model.loader``: called with the weights' path, returns a state dict or a
  ``torch.nn.Module``.
- ``glprune.data``, named by ``data.source``: called with ``split="train"|"valid"|"test"`` and the recipe's
  ``data.arguments``, returns an iterable of ``(inputs, target)``.
- ``glprune.penalties``, named by ``penalty.plugin``: called with weights, shape (n_groups,), blocks and
  ``penalty.arguments``, returns a :class:`glprune.penalty.Penalty`.
- ``glprune.exporters``, listed in ``export.plugins``: called with the finished bundle's folder and an empty
  folder to write.
- ``glprune.reporters``, named by ``run --reporter``: called with the :class:`glprune.Result`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from torch import Tensor

from glprune.audit.verify import open_bundle, whole
from glprune.certify import faults
from glprune.errors import GlpruneError, RecipeError, UsageError, did_you_mean
from glprune.groups import Blocks
from glprune.imports import check_allowed, describe
from glprune.penalty import Penalty
from glprune.recipe import Recipe
from glprune.result import Result

Group = Literal[
    "glprune.loaders", "glprune.data", "glprune.penalties", "glprune.exporters", "glprune.reporters"
]


MakePenalty = Callable[[Tensor, Blocks], Penalty]


class PluginError(GlpruneError):
    """A plugin raised, or returned what it must not."""


@dataclass(frozen=True)
class Plugin:
    """A plugin, imported.

    Attributes:
        name: What recipes call it.
        group: What it is for.
        package: The distribution it comes from, with its version.
        target: The callable.
    """

    name: str
    group: Group
    package: str
    target: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it.

        Raises:
            GlpruneError: Its own, or a :class:`PluginError` of one line for whatever else it raises.
        """
        try:
            return self.target(*args, **kwargs)
        except GlpruneError:
            raise
        except (Exception, SystemExit) as error:  # somebody else's code may raise anything
            raise PluginError(f"{self.says} failed ({describe(error)}).") from error

    @property
    def says(self) -> str:
        """How messages call it."""
        return f"plugin {self.name!r} of {self.package}"


def load_plugin(
    group: Group,
    name: str,
    where: str,
    allowed: Sequence[str] | None = None,
) -> Plugin:
    """Import the one plugin of a name.

    Args:
        group: What it is for.
        name: What the recipe or the option says.
        where: Place of the key, for the error.
        allowed: Packages and modules it may be imported from, as for factories; None: any.

    Raises:
        RecipeError: There is none of that name, or several, or it is not allowed or cannot be imported.
    """
    found = entry_points(group=group)
    offers = {(_package(e), e.value): e for e in found.select(name=name)}
    if not offers:
        names = sorted(found.names)
        installed = f" There are {', '.join(names)}." if names else " None is installed."
        raise RecipeError(
            f"{where}: no {group} plugin {name!r}.{did_you_mean(name, names) or installed} "
            "Install the package that offers it, or change the name."
        )
    if len(offers) > 1:
        both = " and ".join(sorted(package for package, _ in offers))
        raise RecipeError(f"{where}: {both} both offer a {group} plugin {name!r}; uninstall one.")
    (((package, _), entry),) = offers.items()
    check_allowed(
        entry.module, allowed, f"{where}: plugin {name!r} of {package} is of {entry.module!r}, which"
    )
    target = _imported(entry, package, where)
    home = getattr(target, "__module__", None) or "an unknown module"
    check_allowed(home, allowed, f"{where}: plugin {name!r} of {package} is of {home!r}, which")
    return Plugin(name, group, package, target)


def load_reporters(names: Sequence[str], allowed: Sequence[str] | None = None) -> list[Plugin]:
    """The reporters of ``run --reporter``, before anything is trained.

    Raises:
        UsageError: See :func:`load_plugin`, or a name is there twice.
    """
    if len(set(names)) < len(names):
        raise UsageError("--reporter: a name is there twice; give each once.")
    return [load_plugin("glprune.reporters", name, "--reporter", allowed) for name in names]


def packages(recipe: Recipe) -> dict[str, str]:
    """``group:name`` -> package and version of each plugin that a recipe names; nothing is imported."""
    named: list[tuple[str, str | None]] = [
        ("glprune.loaders", recipe.model.loader),
        ("glprune.data", recipe.data.source),
        ("glprune.penalties", recipe.penalty.plugin),
        *(("glprune.exporters", name) for name in recipe.export.plugins),
    ]
    return {
        f"{group}:{name}": _package(entry)
        for group, name in named
        if name is not None
        for entry in entry_points(group=group, name=name)
    }


def load_penalty(recipe: Recipe) -> MakePenalty | None:
    """The recipe's penalty plugin, held to what a penalty must be on random numbers; None where it has none.

    Raises:
        RecipeError: See :func:`load_plugin`.
        PluginError: Its prox is no prox, its residuals are none, or it raises.
    """
    spec = recipe.penalty
    if spec.plugin is None:
        return None
    plugin = load_plugin("glprune.penalties", spec.plugin, recipe.where("penalty", "plugin"), recipe.allowed)

    def make(weights: Tensor, blocks: Blocks) -> Penalty:
        made = plugin(weights, blocks, **spec.arguments)
        if not isinstance(made, Penalty):
            raise PluginError(f"{plugin.says} gave {type(made).__name__}, not a glprune.penalty.Penalty.")
        return made

    try:
        found = faults(make)
    except GlpruneError:
        raise
    except Exception as error:  # its methods may raise anything
        raise PluginError(f"{plugin.says} failed ({describe(error)}).") from error
    if found:
        raise PluginError(f"{plugin.says} is refused, since its zeros could not be certified: {found[0]}.")
    return make


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
    found = whole(open_bundle(result.bundle))
    if found:
        raise PluginError(f"{plugin.says} changed the bundle ({found[0]}); make it anew with --overwrite.")


def _imported(entry: EntryPoint, package: str, where: str) -> Callable[..., Any]:
    try:
        target = entry.load()
    except (Exception, SystemExit) as error:  # somebody else's module may raise anything
        raise RecipeError(
            f"{where}: importing plugin {entry.name!r} of {package} failed ({describe(error)})."
        ) from error
    if not callable(target):
        raise RecipeError(f"{where}: plugin {entry.name!r} of {package} is no function: {entry.value}.")
    return target


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown package"
