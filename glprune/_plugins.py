"""Find and call plugins: code of other packages that a recipe or an option names, by Python entry points.

A package offers a plugin by an entry point in one of the groups below (in its ``pyproject.toml``:
``[project.entry-points."glprune.data"]``, then ``warehouse = "my_package:rows"``). Nothing of it is
imported unless a recipe or an option names it.

- ``glprune.loaders``, named by ``model.loader``: called with the weights' path, returns a state dict or a
  ``torch.nn.Module``.
- ``glprune.data``, named by ``data.source``: called with ``split="train"|"valid"|"test"`` and the recipe's
  ``data.arguments``, returns an iterable of ``(inputs, target)``.
- ``glprune.penalties``, named by ``penalty.plugin``: called with weights, shape (n_groups,), blocks and
  ``penalty.arguments``, returns a ``glprune.training.penalties.Penalty``.
- ``glprune.exporters``, listed in ``export.plugins``: called with the finished bundle's folder and an empty
  folder to write.
- ``glprune.reporters``, named by ``run --reporter``: called with the ``glprune.Result``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, cast

from glprune._imports import check_allowed
from glprune._user_code import user_code
from glprune.errors import GlpruneError, RecipeError, did_you_mean

Group = Literal[
    "glprune.loaders", "glprune.data", "glprune.penalties", "glprune.exporters", "glprune.reporters"
]


class PluginError(GlpruneError):
    """A plugin raised an error or returned something invalid."""


@dataclass(frozen=True)
class Plugin:
    """An imported plugin.

    Attributes:
        name: Its name in recipes.
        group: Its entry point group.
        package: Its distribution and version.
        target: The callable.
    """

    name: str
    group: Group
    package: str
    target: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the plugin.

        Raises:
            GlpruneError: As the plugin raises it; any other error becomes a ``PluginError``.
        """
        with user_code(PluginError, self.says):
            return self.target(*args, **kwargs)

    @property
    def says(self) -> str:
        """Its name in messages."""
        return f"plugin {self.name!r} of {self.package}"


def load_plugin(
    group: Group,
    name: str,
    where: str,
    allowed: Sequence[str] | None = None,
) -> Plugin:
    """Import the plugin of a name.

    Args:
        group: Its entry point group.
        name: Its name in the recipe or the option.
        where: Place of the key, for error messages.
        allowed: Packages and modules it may be imported from, as for factories; None: any.

    Raises:
        RecipeError: There is no plugin or several of that name, or it is not allowed or cannot be imported.
    """
    found = entry_points(group=group)
    offers = {(_package(e), e.value): e for e in found.select(name=name)}
    if not offers:
        names = sorted(found.names)
        installed = f" Installed: {', '.join(names)}." if names else " None is installed."
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
    target = _load_entry_point(entry, package, where)
    home = getattr(target, "__module__", None) or "an unknown module"
    check_allowed(home, allowed, f"{where}: plugin {name!r} of {package} is of {home!r}, which")
    return Plugin(name, group, package, target)


def packages(named: Iterable[tuple[Group, str]]) -> dict[str, str]:
    """Return ``group:name`` -> package and version of each named plugin, without importing it."""
    return {
        f"{group}:{name}": _package(entry)
        for group, name in named
        for entry in entry_points(group=group, name=name)
    }


def _load_entry_point(entry: EntryPoint, package: str, where: str) -> Callable[..., Any]:
    with user_code(RecipeError, f"{where}: importing plugin {entry.name!r} of {package}"):
        target = entry.load()
    if not callable(target):
        raise RecipeError(f"{where}: plugin {entry.name!r} of {package} is not a function: {entry.value}.")
    return cast("Callable[..., Any]", target)


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown package"
