"""Import what a recipe names: a factory or a data loader."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from glprune.errors import GlpruneError, RecipeError


def load_callable(
    reference: str, folder: Path, where: str, allowed: Sequence[str] | None = None
) -> Callable[..., Any]:
    """Import ``package.module:function`` or ``relative/file.py:function``.

    Args:
        reference: What the recipe says.
        folder: The folder a file is relative to.
        where: Place of the key, for the error.
        allowed: Packages, modules and files (as the recipe writes them) that may be imported; None: any.
            Where it is given, packages are those that are installed: a folder beside the recipe cannot
            take their name.

    Raises:
        RecipeError: It is not allowed, cannot be imported, or is not callable.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise RecipeError(
            f"{where}: {reference!r} should be 'package.module:function' or 'file.py:function'."
        )
    check_allowed(place, allowed, f"{where}: {place!r}")
    beside = [str(folder.resolve()), str(Path.cwd())] if allowed is None else []
    try:
        module = _from_file(folder / place) if place.endswith(".py") else _from_path(place, beside)
    except GlpruneError:
        raise
    except FileNotFoundError:
        raise RecipeError(f"{where}: no file {folder / place}; paths are relative to the recipe.") from None
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{where}: no module {error.name!r}; install it, or name a file such as 'network.py:{name}'."
        ) from None
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise RecipeError(f"{where}: importing {place!r} failed ({describe(error)}).") from error
    found = getattr(module, name, None)
    if not callable(found):
        what = "has no" if found is None else "has a value, not a function,"
        raise RecipeError(f"{where}: {place!r} {what} {name!r}; name a function or class it defines.")
    home = getattr(found, "__module__", None) or "an unknown module"
    if home != module.__name__:  # imported there, such as urlopen in a module that downloads
        check_allowed(home, allowed, f"{where}: {reference!r} is of {home!r}, which")
    return found


def check_allowed(place: str, allowed: Sequence[str] | None, what: str) -> None:
    """Refuse a file or module that is neither named nor in a named package."""
    inside = not place.endswith(".py")
    if allowed is None or any(place == n or (inside and place.startswith(f"{n}.")) for n in allowed):
        return
    raise RecipeError(
        f"{what} is not among what --allow-factory names ({', '.join(allowed) or 'nothing'}); "
        "read its code and name it, or change the recipe."
    )


def describe(error: BaseException) -> str:
    """Type, message and last line of an error in somebody else's code, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    first = (str(error).strip() or "no message").splitlines()[0][:200]
    return f"{type(error).__name__}: {first}{at}"


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(path)
    name = f"_glprune_recipe_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_path(name: str, beside: Sequence[str]) -> ModuleType:
    """Import a module, looking in some folders first."""
    sys.path[:0] = beside
    try:
        return importlib.import_module(name)
    finally:
        for path in beside:
            sys.path.remove(path)
