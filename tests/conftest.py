"""One line at the end of a session about the random networks that were run."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import pytest

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # of every test process and of those it starts; before PyTorch is read
import torch
from filelock import FileLock

from tests.paths import ROOT

_LONG = (
    "test_pretrained_networks",
    "test_examples",
    "test_resume",
    "test_architecture_runs",
    "test_tampering",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first: with several processes none is left to run alone at the end."""
    items.sort(key=lambda item: item.path.stem not in _LONG)


P, R = ParamSpec("P"), TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Call a function without the trace function that coverage has set."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*args, **kwargs)
        finally:
            sys.settrace(trace)

    return call


@pytest.fixture(scope="session", autouse=True)
def exports_without_coverage() -> Iterator[None]:
    """Pause coverage while PyTorch exports a network, which takes 1.7 times as long with it."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.gettrace() is not None:
            patch.setattr(torch.onnx, "export", untraced(torch.onnx.export))
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Thousands of tiny operations: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def local_workers(monkeypatch, request):
    """Ray, which takes seconds to start, is for the tests that ask for it."""
    if "with_ray" not in request.keywords:
        monkeypatch.setattr("glprune.runtime.worker_pool.ray_installed", lambda: False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    try:
        from tests.generated import TALLY
    except ImportError:  # a session that collected nothing from here
        return
    if TALLY.cases:
        terminalreporter.write_line(TALLY.line())


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this session share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def audited(shared_folder):
    """Base bundles by name, unsigned; tests change copies."""
    from tests.bundle_fixtures import Bundles

    folder = shared_folder / "audited"
    folder.mkdir(exist_ok=True)
    return Bundles(folder)


@pytest.fixture(scope="session")
def examples(shared_folder):
    """What the shipped recipes of data in the repository make, by the name of the recipe."""
    return Examples(shared_folder / "examples")


class Examples(dict):
    """Results of the shipped recipes, each made when it is first asked for, by one of the test processes for all."""

    _MODELS: ClassVar = {
        "german_credit": "german_credit",
        "german_credit_policy": "german_credit",
        "german_credit_sources": "german_credit",
        "mnist": "mnist",
    }

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def __missing__(self, name: str) -> Any:
        import glprune

        model, bundle = ROOT / "examples" / self._MODELS[name] / "model.pt", self.folder / name
        with FileLock(self.folder / f"{name}.lock"):
            made = bundle.exists()
            self[name] = (
                glprune.Result.load(bundle)
                if made
                else glprune.run(ROOT / "recipes" / f"{name}.yaml", model, bundle)
            )
        return self[name]
