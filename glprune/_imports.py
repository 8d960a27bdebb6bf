"""Import the functions that a recipe names: factories and data loaders."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from glprune._user_code import user_code
from glprune.errors import RecipeError


def load_callable(
    reference: str, folder: Path, where: str, allowed: Sequence[str] | None = None
) -> Callable[..., Any]:
    """Import ``package.module:function`` or ``relative/file.py:function``.

    Args:
        reference: The text in the recipe.
        folder: The folder that a file is relative to.
        where: Place of the key, for error messages.
        allowed: Packages, modules and files (as the recipe writes them) that may be imported; None: any.
            If it is given, only installed packages are found, so that a folder beside the recipe cannot
            replace one of them.

    Raises:
        RecipeError: It is not allowed, cannot be imported, or is not callable.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise RecipeError(
            f"{where}: {reference!r} should be 'package.module:function' or 'file.py:function'."
        )
    check_allowed(place, allowed, f"{where}: {place!r}")
    folders = [str(folder.resolve()), str(Path.cwd())] if allowed is None else []
    try:
        with user_code(
            RecipeError, f"{where}: importing {place!r}", (FileNotFoundError, ModuleNotFoundError)
        ):
            module = _from_file(folder / place) if place.endswith(".py") else _from_path(place, folders)
    except FileNotFoundError:
        raise RecipeError(f"{where}: no file {folder / place}; paths are relative to the recipe.") from None
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{where}: no module {error.name!r}; install it, or name a file such as 'network.py:{name}'."
        ) from None
    found = getattr(module, name, None)
    if not callable(found):
        problem = "has no" if found is None else "has a value, not a function,"
        raise RecipeError(f"{where}: {place!r} {problem} {name!r}; name a function or class it defines.")
    home = getattr(found, "__module__", None) or "an unknown module"
    if home != module.__name__:  # the module imported it, such as urlopen in a module that downloads
        check_allowed(home, allowed, f"{where}: {reference!r} is of {home!r}, which")
    return cast("Callable[..., Any]", found)


def check_allowed(place: str, allowed: Sequence[str] | None, subject: str) -> None:
    """Refuse a file or module that ``allowed`` neither names nor contains.

    Args:
        place: The file or module.
        allowed: Packages, modules and files; None: any.
        subject: The beginning of the error message.

    Raises:
        RecipeError: It is not allowed.
    """
    inside = not place.endswith(".py")
    if allowed is None or any(place == n or (inside and place.startswith(f"{n}.")) for n in allowed):
        return
    raise RecipeError(
        f"{subject} is not listed by --allow-factory ({', '.join(allowed) or 'nothing'}); "
        "review its code and list it, or change the recipe."
    )


def _from_file(path: Path) -> ModuleType:
    """Import a Python file."""
    if not path.is_file():
        raise FileNotFoundError(path)
    name = f"_glprune_recipe_{path.stem}_{zlib.crc32(os.fsencode(path.resolve())):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up the module by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_path(name: str, folders: Sequence[str]) -> ModuleType:
    """Import a module, searching some folders first."""
    sys.path[:0] = folders
    try:
        return importlib.import_module(name)
    finally:
        for path in folders:
            sys.path.remove(path)
