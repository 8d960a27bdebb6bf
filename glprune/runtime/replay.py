"""Repeat a finished search from its steps: every result is read, nothing is trained.

A search is a function of its job and of the results of its long steps, which the checkpoint log keeps. The
same results, read back from a bundle, lead it to the same networks; each removal is made and certified again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import safetensors.torch
from torch import Tensor

from glprune._version import __version__
from glprune.errors import UsageError
from glprune.runtime.checkpoint import CheckpointLog, Step, pack_tensors
from glprune.schema import bundle as bundles
from glprune.schema.frontier import SearchStep, StoredFrontier, StoredPoint

if TYPE_CHECKING:
    from pathlib import Path


class ReplayLog(CheckpointLog):
    """The steps of a finished search; a search that asks for another step ends.

    Args:
        steps: The steps, in order.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self._records = [*steps]

    def load_step(self, name: str, key: Mapping[str, Any]) -> Step:
        """Return the stored result of the next step.

        Raises:
            UsageError: The next step is another one.
        """
        return super().load_step(name, key) or self._refuse(name)

    def save_step(
        self,
        name: str,
        key: Mapping[str, Any],
        values: dict[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
        since: int | None = None,
    ) -> Step:
        """Refuse a step that is not stored.

        Raises:
            UsageError: Always.
        """
        self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        raise UsageError(
            f"{bundles.FRONTIER} does not hold the next step of the search ({name}) as glprune {__version__} "
            "makes it; use the version that report.json names, or run again with target.max_features."
        )


def write_steps(
    log: CheckpointLog, ends: Mapping[int, int], folder: Path, recipe: str | None, model: str
) -> None:
    """Write the steps of a search: ``frontier.json``, and the tensors in a file for each point.

    Args:
        log: The log.
        ends: Size of a point -> number of steps that led to it, in the order of the search.
        folder: The bundle.
        recipe: Path of the recipe from the bundle; None where it has no file.
        model: Path of the trained weights from the bundle.
    """
    (folder / bundles.POINTS).mkdir()
    points, start = [], 0
    for size, end in ends.items():
        steps, start = log.steps(start, end), end
        tensors = {
            f"{number}/{name}": tensor
            for number, step in enumerate(steps)
            for name, tensor in log.weights(step).items()
        }
        (folder / bundles.point_file(size)).write_bytes(pack_tensors(tensors))
        stored = [SearchStep(name=s.name, key=dict(s.key), values=s.values) for s in steps]
        points.append(StoredPoint(size=size, steps=stored))
    record = StoredFrontier(schema="glprune.frontier/1", recipe=recipe, model=model, points=points)
    bundles.write_json(folder / bundles.FRONTIER, record.model_dump(mode="json", by_alias=True))


def read_steps(stored: StoredFrontier, folder: Path) -> ReplayLog:
    """Read the steps that ``write_steps`` wrote; the bundle was checked against its manifest."""
    steps = []
    for point in stored.points:
        tensors = safetensors.torch.load((folder / bundles.point_file(point.size)).read_bytes())
        for number, step in enumerate(point.steps):
            prefix = f"{number}/"
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            steps.append(Step(step.name, step.key, step.values, own))
    return ReplayLog(steps)
