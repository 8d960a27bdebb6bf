"""What a network would measure once its zero groups are cut, before anything is cut for good."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from glprune.data import Narrowing
from glprune.export import export_onnx
from glprune.groups import GroupSet
from glprune.job import Job, first_rows
from glprune.measure import OnnxFile, latency, macs, parameters
from glprune.removal import Removed, shaped
from glprune.report import Latency
from glprune.units import Inputs

Alive = Sequence[Tensor]
Measure = Callable[[nn.Module, Inputs], int]


def measured(job: Job, alive: Alive, measure: Measure, multiple: int = 1) -> int:
    """Measure the network whose marked groups alone are left.

    Args:
        job: The network and its groups.
        alive: For each group set, which groups are left, bool, shape (n_groups,).
        measure: Takes a network and one row of its inputs.
        multiple: Of hidden widths.
    """
    network, columns = shaped(job.network, job.groups, alive, job.probe, job.axes, multiple)
    return measure(network, Narrowing(columns, job.axes)(first_rows(job.data.test, 1)))


def count_parameters(network: nn.Module, inputs: Inputs) -> int:
    """Number of parameters; the inputs are not needed."""
    return parameters(network)


MEASURES: dict[str, Measure] = {"parameters": count_parameters, "macs": macs}


def all_alive(groups: Sequence[GroupSet]) -> list[Tensor]:
    """Marks of groups that all stay."""
    return [torch.ones(len(g.labels), dtype=torch.bool) for g in groups]


def unit_costs(job: Job, measure: Measure) -> dict[str, float]:
    """What one group of each set costs, by cutting one alone; at least a thousandth of the dearest.

    Returns:
        Set name -> cost of a group for each weight leaving it, mean 1 over the sets.
    """
    whole = measured(job, all_alive(job.groups), measure)
    found = {}
    for number, groups in enumerate(job.groups):
        if groups.units.refused or len(groups.labels) < 2:
            continue
        alive = all_alive(job.groups)
        alive[number][-1] = False
        units = int((groups.group == len(groups.labels) - 1).sum())
        found[groups.name] = (
            max(0, whole - measured(job, alive, measure)) / units / _weights_of_a_unit(job, groups)
        )
    largest = max(found.values(), default=0.0)
    if largest == 0:
        return {}
    found = {name: max(cost, 1e-3 * largest) for name, cost in found.items()}
    mean = sum(found.values()) / len(found)
    return {name: cost / mean for name, cost in found.items()}


def _weights_of_a_unit(job: Job, groups: GroupSet) -> float:
    """Number of weights leaving a unit, in the mean."""
    state = job.network.state_dict()
    total = 0.0
    for slot in groups.units.readers:
        tensor = state[slot.tensor]
        total += tensor.numel() / tensor.shape[slot.dim] * int((slot.unit >= 0).sum())
    return max(1.0, total / groups.units.count)


class Stopwatch:
    """Latency of networks of other widths, as ONNX files beside the original's.

    Args:
        job: The job whose network is the original.
        batch: Rows of one call.
        folder: An empty folder for the files.
    """

    def __init__(self, job: Job, batch: int, folder: Path) -> None:
        self.job, self.batch, self.folder = job, batch, folder
        self.inputs = first_rows(job.data.test, batch)
        self.threads = job.recipe.threads

    @functools.cached_property
    def original(self) -> OnnxFile:
        """The original's file."""
        return self._file(self.job.network, self.inputs, "original.onnx")

    def __call__(self, network: nn.Module, columns: tuple[Tensor, ...]) -> tuple[float, float]:
        """Latency of a network in ms, and as a share of the original's, run in turn."""
        slim = Narrowing(columns, self.job.axes)(self.inputs)
        file = self._file(network, slim, "slim.onnx")
        times = latency(self.original, file, self.inputs, slim, self.batch, self.threads)
        return times.slim_ms, 1.0 / times.speedup

    def against(self, first: Removed, second: Removed) -> Latency:
        """Latency of two slim networks, run in turn; the second one's speed-up over the first."""
        before, after = (Narrowing(r.columns, self.job.axes)(self.inputs) for r in (first, second))
        one = self._file(first.network, before, "first.onnx")
        other = self._file(second.network, after, "second.onnx")
        return latency(one, other, before, after, self.batch, self.threads)

    def _file(self, network: nn.Module, inputs: Inputs, name: str) -> OnnxFile:
        names, outputs, spec = self.job.input_names, self.job.outputs.names, self.job.recipe.export
        path = self.folder / name
        export_onnx(network, inputs, names, outputs, path, opset=spec.opset, dynamic=spec.dynamic)
        return OnnxFile(path, self.threads)


def uniform(job: Job, share: float, kinds: Sequence[str]) -> list[Tensor]:
    """Marks that leave the same share of every set of some kinds, at least one group of each."""
    marks = all_alive(job.groups)
    for alive, groups in zip(marks, job.groups, strict=True):
        if groups.kind in kinds and not groups.units.refused:
            alive[max(1, round(share * len(alive))) :] = False
    return marks
