"""Public names of a package that are imported on first use (PEP 562)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package; importing the package then loads none of its modules.

    Args:
        package: ``__name__`` of the package.
        modules: Public name -> module of the package that defines it, relative to the package.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(f"{package}.{modules[name]}")
        except ModuleNotFoundError as error:
            if str(error.name).startswith(f"{package}."):
                raise
            raise ModuleNotFoundError(
                f"{package}.{name} needs {error.name}, which is not installed; "
                "install glprune with its dependencies",
                name=error.name,
            ) from error
        return getattr(module, name)

    return get
