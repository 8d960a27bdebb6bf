"""One line at the end of a session about the random networks that were run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import pytest
import torch

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
def audited(tmp_path_factory):
    """Base bundles by name, unsigned; tests change copies."""
    from tests.bundle_fixtures import Bundles

    return Bundles(tmp_path_factory.mktemp("audited"))


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    """What the shipped recipes of data in the repository make, by the name of the recipe."""
    import glprune

    root, folder = ROOT, tmp_path_factory.mktemp("examples")
    models = {"german_credit": "german_credit", "german_credit_policy": "german_credit", "mnist": "mnist"}
    return {
        name: glprune.run(
            root / "recipes" / f"{name}.yaml", root / "examples" / model / "model.pt", folder / name
        )
        for name, model in models.items()
    }
