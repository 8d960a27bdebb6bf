"""Import the functions that a recipe names: factories and data loaders."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Self, cast

from glprune._user_code import describe
from glprune.errors import GlpruneError, RecipeError, error_text


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
    module = _import(place, folder, where, allowed)
    found = getattr(module, name, None)
    if not callable(found):
        problem = "has no" if found is None else "has a value, not a function,"
        raise RecipeError(f"{where}: {place!r} {problem} {name!r}; name a function or class it defines.")
    home = getattr(found, "__module__", None) or "an unknown module"
    if home != module.__name__:  # the module imported it, such as urlopen in a module that downloads
        check_allowed(home, allowed, f"{where}: {reference!r} is of {home!r}, which")
    if not place.endswith(".py"):
        return cast("Callable[..., Any]", found)
    return _finding_siblings(found, place, folder, where, allowed)


def _import(place: str, folder: Path, where: str, allowed: Sequence[str] | None) -> ModuleType:
    """Import a module or file; any error of its code becomes one line."""
    folders = [str(folder.resolve()), str(Path.cwd())] if allowed is None else []
    said = _HeldOutput()
    try:
        with said:
            if not place.endswith(".py"):
                return _from_path(place, folders)
            with _siblings_of(place, folder, allowed):
                return _from_file(folder / place)
    except (GlpruneError, KeyboardInterrupt):
        raise
    except FileNotFoundError as error:
        raise RecipeError(f"{where}: no file {folder / place}; paths are relative to the recipe.") from error
    except ModuleNotFoundError as error:
        raise RecipeError(f"{where}: {_missing_module(place, folder, str(error.name), allowed)}") from error
    except SystemExit as error:
        last = f": {said.last_line}" if said.last_line else ""
        raise RecipeError(
            f"{where}: importing {place!r} failed ({describe(error)}{last}); put what a script runs under "
            "if __name__ == '__main__', or name a file that only builds the network."
        ) from error
    except BaseException as error:  # the user's module may raise anything
        hint = (
            "; import the modules beside it without a dot"
            if "attempted relative import" in error_text(error)
            else ""
        )
        raise RecipeError(f"{where}: importing {place!r} failed ({describe(error)}){hint}.") from error


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


def _missing_module(place: str, folder: Path, missing: str, allowed: Sequence[str] | None) -> str:
    """Return the message on a module that is not found, seen from the module that the recipe names."""
    if not place.endswith(".py"):
        return f"no module {missing!r}; install it, or name a file such as 'network.py:build'."
    beside = [home / missing.partition(".")[0] for home in _homes(folder / place)]
    if allowed is not None and any(b.is_dir() or b.with_suffix(".py").is_file() for b in beside):
        return (
            f"{place!r} imports {missing!r} from its own folder, which --allow-factory forbids; install it "
            f"as a package, or move its code into {place!r}."
        )
    return f"{place!r} imports {missing!r}, which is neither installed nor beside it; install it."


class _HeldOutput(io.StringIO):
    """Holds back what is written to standard error inside a block, unless the block ends the process.

    argparse prints how a script is used before it ends the process. Later writes of who keeps the stream,
    such as a logger, pass at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._holds, self.last_line = False, ""

    def __enter__(self) -> Self:
        self._holds, self._before = True, sys.stderr
        sys.stderr = self
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._holds, sys.stderr = False, self._before
        self.last_line = (self.getvalue().strip().splitlines() or [""])[-1][:200]
        if kind is None or not issubclass(kind, SystemExit):
            sys.stderr.write(self.getvalue())

    def write(self, text: str) -> int:
        """Hold or pass a text."""
        return super().write(text) if self._holds else sys.stderr.write(text)


_FOLDERS = "__glprune_folders__"


@contextlib.contextmanager
def modules_of(*places: Path) -> Iterator[None]:
    """Find the modules of folders inside the block, as Python does for a script in the first of them.

    Modules that were imported so from other folders are forgotten first: they may have the same names.
    """
    folders = [str(place.resolve()) for place in places]
    for name, module in list(sys.modules.items()):
        if getattr(module, "__dict__", {}).get(_FOLDERS, folders) != folders:
            del sys.modules[name]
    before = set(sys.modules)
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            with contextlib.suppress(ValueError):  # user code may change the path
                sys.path.remove(folder)
        for name in sys.modules.keys() - before:
            stems = [f"{folder}/{name.replace('.', '/')}" for folder in folders]
            files = [f"{stem}{end}" for stem in stems for end in (".py", "/__init__.py")]
            if getattr(sys.modules[name], "__file__", None) in files:
                setattr(sys.modules[name], _FOLDERS, folders)


def _finding_siblings(
    function: Callable[..., Any], place: str, folder: Path, where: str, allowed: Sequence[str] | None
) -> Callable[..., Any]:
    """Treat modules that a function of a file imports when it is called as those that the file imports."""

    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            with _siblings_of(place, folder, allowed):
                return function(*args, **kwargs)
        except ModuleNotFoundError as error:
            missing = _missing_module(place, folder, str(error.name), allowed)
            raise RecipeError(f"{where}: {missing}") from error

    return call


def _siblings_of(
    place: str, folder: Path, allowed: Sequence[str] | None
) -> contextlib.AbstractContextManager[None]:
    """Find the modules beside a file, unless only listed ones may be imported."""
    return modules_of(*(_homes(folder / place) if allowed is None else ()))


def _homes(path: Path) -> list[Path]:
    """Return the folder of a file and, if that is a package, the one that holds the outermost package."""
    home = outer = path.resolve().parent
    while (outer / "__init__.py").is_file():
        outer = outer.parent
    return [home] if outer == home else [home, outer]


def _from_file(path: Path) -> ModuleType:
    """Import a Python file; in a package it may import relative to it."""
    if not path.is_file():
        raise FileNotFoundError(path)
    name = f"_glprune_recipe_{path.stem}_{zlib.crc32(os.fsencode(path.resolve())):08x}"
    homes = _homes(path)
    name = ".".join((*homes[0].relative_to(homes[-1]).parts, name))
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
