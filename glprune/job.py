"""A recipe made ready: data read, network loaded, groups found and proved."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from glprune.data import Data, InputColumns, Narrowing, Split, load_data, narrowed
from glprune.errors import DataError, GlpruneError, ModelError, NonFiniteError, RecipeError
from glprune.events import Listener, Note, Stage
from glprune.export import BATCH
from glprune.finite import all_finite, finite_rows, first_fault
from glprune.groups import GroupSet, hidden_groups, input_groups, penalty_weights
from glprune.journal import Journal
from glprune.measure import macs, predict, random_like
from glprune.model import Network, load_network
from glprune.outputs import OutputNames, flatten_outputs_, leaves, name_outputs, named_leaves
from glprune.planning import plan_units
from glprune.plugins import MakePenalty, load_exporters, load_penalty
from glprune.policy import NO_RULES, Rules, resolve
from glprune.recipe import Recipe
from glprune.scaling import Scaled, Standardize
from glprune.task import Task
from glprune.teaching import taught
from glprune.train import batch_size
from glprune.units import Inputs, Kind, UnitSet
from glprune.workers import available_cores

PROBE_ROWS = 256
_CHECKED_ROWS = 1024
_LARGE = 2e7  # multiply-accumulates of a step from which on a second thread makes it 1.4 times as fast


@dataclass(frozen=True)
class Job:
    """A recipe with its data and network, ready to be pruned.

    Attributes:
        recipe: The recipe.
        data: The data, columns in the network's order.
        loaded: The network as loaded.
        network: The network in evaluation mode, behind its standardisation layer if the recipe
            states one.
        task: Loss and metrics.
        groups: Proved group sets, inputs first: one for each input with an axis, in their order.
        probe: Real and random rows every cut is compared on.
        outputs: What the network returns.
        rules: What the recipe's policy says of the fields.
        journal: Keeps what was done, for a run that is stopped.
        make_penalty: Makes a plugin's penalty; None for those of glprune.
    """

    recipe: Recipe
    data: Data
    loaded: Network
    network: nn.Module
    task: Task
    groups: list[GroupSet]
    probe: Inputs
    outputs: OutputNames
    rules: Rules = NO_RULES
    journal: Journal = field(default_factory=Journal)
    make_penalty: MakePenalty | None = None

    @property
    def axes(self) -> tuple[int | None, ...]:
        """The feature axis of each input; None for inputs that pass whole."""
        return tuple(spec.axis for spec in self.recipe.model.inputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The name of each input."""
        return tuple(spec.name for spec in self.recipe.model.inputs)

    @property
    def metric(self) -> str:
        """The metric that selects the point of the path."""
        drop = self.recipe.target.max_drop
        return drop.metric if drop is not None else self.task.default_metric

    @property
    def input_groups(self) -> list[GroupSet]:
        """The group sets of the input fields; their labels one after the other are ``data.fields``."""
        return [g for g in self.groups if g.kind == "input"]

    @property
    def fixed_inputs(self) -> list[str]:
        """What the user should know of inputs whose columns stay though their penalty was asked for."""
        if self.recipe.penalty.inputs is None:
            return []
        return [
            f"The columns of input {g.name!r} cannot be removed and all stay: {g.units.refused}."
            for g in self.input_groups
            if g.units.refused
        ]

    def penalised(self, kinds: Collection[Kind] = ("input", "hidden")) -> list[tuple[GroupSet, Tensor]]:
        """Group sets of the given kinds under a penalty and the penalty weights of their groups.

        Raises:
            RecipeError: The recipe names a layer the network does not have.
            ModelError: The input columns cannot be cut, or nothing is left to penalise.
        """
        self._check_layers()
        refused = [g for g in self.input_groups if g.units.refused]
        if "input" in kinds and self.fixed_inputs and len(refused) == len(self.input_groups):
            named = len(self.axes) > 1
            reasons = "; ".join(
                f"{g.name}: {g.units.refused}" if named else f"{g.units.refused}" for g in refused
            )
            raise ModelError(
                f"The input columns cannot be removed: {reasons}. To prune hidden units only, set "
                "penalty.inputs: null."
            )
        found = [
            (groups, self.weights(groups))
            for groups in self.groups
            if groups.kind in kinds and not groups.units.refused and self.strength(groups) > 0
        ]
        chosen = [(groups, weights) for groups, weights in found if bool(weights.any())]
        if not chosen:
            reasons = "; ".join(f"{g.name}: {g.units.refused}" for g in self.groups if g.units.refused)
            raise ModelError(f"No group of the network can be removed ({reasons or 'no hidden layer'}).")
        return chosen

    def weights(self, groups: GroupSet) -> Tensor:
        """Penalty weights of a set's groups at the trained network, (n_groups,); 0 of what must stay."""
        adaptive = self.recipe.penalty.weights == "adaptive"
        weights = penalty_weights(self.network.state_dict(), groups, self.strength(groups), adaptive)
        if groups.kind == "input":
            weights[[label in self.rules.required for label in groups.labels]] = 0.0
        return weights

    def strength(self, groups: GroupSet) -> float:
        """The strength of a group set; 0 where it is not penalised."""
        if groups.kind == "input":
            return self.recipe.penalty.inputs.strength if self.recipe.penalty.inputs else 0.0
        spec = self.recipe.penalty.hidden
        if spec is None:
            return 0.0
        factors = [f for pattern, f in spec.layers.items() if fnmatch.fnmatchcase(groups.name, pattern)]
        return spec.strength * (factors[-1] if factors else 1.0)

    def _check_layers(self) -> None:
        spec = self.recipe.penalty.hidden
        names = [g.name for g in self.groups if g.kind == "hidden"]
        for pattern in spec.layers if spec else ():
            if not fnmatch.filter(names, pattern):
                raise RecipeError(
                    f"{self.recipe.where('penalty', 'hidden', 'layers', pattern)}: no hidden layer of this "
                    f"name; the network has {', '.join(names) or 'none'}."
                )


def continued(job: Job, network: nn.Module, columns: tuple[Tensor, ...], groups: list[GroupSet]) -> Job:
    """The job of a slim network: the same rows through the kept columns.

    Args:
        job: The job of the network it was cut from.
        network: The slim network, in evaluation mode.
        columns: Kept positions along each input's feature axis.
        groups: What is left of the groups; found anew where the network feeds itself constants, whose
            tensors were not sliced.
    """
    narrow = Narrowing(columns, job.axes)
    kept = [span[c] for span, own in zip(job.data.spans, columns, strict=True) for c in own.tolist()]
    place = {old: new for new, old in enumerate(kept)}
    fields = [(f, [place[c] for c in f.columns if c in place]) for f in job.data.fields]
    data = replace(
        job.data,
        inputs=tuple(
            part if part.axis is None else replace(part, columns=tuple(part.columns[c] for c in own.tolist()))
            for part, own in zip(job.data.inputs, columns, strict=True)
        ),
        fields=tuple(replace(f, columns=tuple(left)) for f, left in fields if left),
        train=narrowed(job.data.train, narrow),
        valid=narrowed(job.data.valid, narrow),
        test=narrowed(job.data.test, narrow),
    )
    probe = narrow(job.probe)
    if any(g.units.removal == "constant" for g in groups):
        groups = find_groups(network, job.recipe, data, probe)
    return replace(job, data=data, network=network, groups=groups, probe=probe)


def prepare(recipe: Recipe, model: Path, trust_pickle: bool, listener: Listener) -> Job:
    """Read data and network, run the network once, find its groups and prove them.

    Args:
        recipe: The recipe.
        model: The trained weights.
        trust_pickle: Allow a fully pickled module.
        listener: Told the stages and what the user should know of the data.

    Raises:
        GlpruneError: Whatever is wrong with recipe, data or model, in one line.
    """
    make_penalty = load_penalty(recipe)
    load_exporters(recipe)  # better missing now than after hours
    listener(Stage("data", "reading and checking"))
    data = load_data(recipe)
    rules = resolve(recipe, data)
    for note in (*data.notes, *rules.sentences()):
        listener(Note(note))
    listener(Stage("model", "loading the network and proving its groups"))
    job = assemble(recipe, data, load_network(recipe, model, trust_pickle=trust_pickle), rules)
    if len(job.fixed_inputs) < len(job.input_groups):
        for sentence in job.fixed_inputs:
            listener(Note(sentence))
    for sentence in _idle_cores(job):
        listener(Note(sentence))
    return replace(job, make_penalty=make_penalty)


def assemble(recipe: Recipe, data: Data, loaded: Network, rules: Rules = NO_RULES) -> Job:
    """The job of data and a network already in memory: runs it on every row, finds its groups, proves them.

    Raises:
        GlpruneError: Whatever is wrong with data or model, in one line.
    """
    network = _with_scaling(loaded.module, data)
    real = first_rows(data.test, PROBE_ROWS)
    _check_dynamic_axes(recipe, real)
    output = _try_forward(network, real, data)
    found = named_leaves(output)
    if not isinstance(output, Tensor):
        flatten_outputs_(loaded.module)
    outputs = name_outputs(recipe, found, len(real[0]))
    task = Task(recipe.task, recipe.model.output, len(data.classes or ()), prediction=outputs.predicted or 0)
    task = task.fitted(found[task.prediction][1])
    _check_rows(network, data, recipe)
    if recipe.task == "distillation":
        data, task = taught(data, network, task)
    probe = _probe(network, real, [spec.axis for spec in recipe.model.inputs], recipe.seed)
    groups = find_groups(network, recipe, data, probe)
    return Job(recipe, data, loaded, network, task, groups, probe, outputs, rules)


def _check_dynamic_axes(recipe: Recipe, rows: Inputs) -> None:
    """Refuse axes of any length that the inputs do not have, or whose length is fixed or no other's."""
    lengths: dict[str, tuple[str, int]] = {}
    for spec, x in zip(recipe.model.inputs, rows, strict=True):
        taken = {0: "counts the rows and is of any length anyway"}
        if spec.axis is not None:
            taken[spec.axis % x.ndim] = "holds the features, whose number is fixed"
        for axis, label in recipe.export.dynamic.get(spec.name, {}).items():
            where = recipe.where("export", "dynamic_axes", spec.name, str(axis))
            if not -x.ndim <= axis < x.ndim:
                has = ", ".join(map(str, range(1, x.ndim)))
                raise RecipeError(
                    f"{where}: input {spec.name!r} has no axis {axis}; "
                    + (f"besides the rows it has {has}." if has else "it has rows alone; remove the key.")
                )
            place = axis % x.ndim
            if place in taken:
                raise RecipeError(f"{where}: axis {axis} of {spec.name!r} {taken[place]}; remove it.")
            if label == BATCH:
                raise RecipeError(f"{where}: {BATCH!r} is the number of rows; give the axis another label.")
            taken[place] = "is named twice"
            known = lengths.setdefault(label, (f"axis {axis} of {spec.name!r}", x.shape[place]))
            if known[1] != x.shape[place]:
                raise RecipeError(
                    f"{where}: axis {axis} of {spec.name!r} is {x.shape[place]} long and {known[0]}, also "
                    f"{label!r}, {known[1]}; equal labels are equal lengths, give it another."
                )


def _idle_cores(job: Job) -> list[str]:
    """What the user should know where one thread is slow and the machine has more cores."""
    size = batch_size(job.recipe.train.batch_size, job.data.train)
    products = macs(job.network, first_rows(job.data.train, 1)) * (size or 1)
    if job.recipe.threads > 1 or products < _LARGE or available_cores() < 2:
        return []
    return [
        f"A step computes {products:.1e} multiply-accumulates with one thread; threads: {available_cores()} "
        "in the recipe would be faster here. Results go with that number, not with the machine's cores."
    ]


def _with_scaling(network: nn.Module, data: Data) -> nn.Module:
    """The network behind the standardisation the recipe asks for."""
    if not any(data.standardization):
        return network
    layers = [Standardize(s.mean, s.std) if s is not None else None for s in data.standardization]
    for layer, part in zip(layers, data.inputs, strict=True):
        if layer is not None:
            _check_scales(layer, part.columns)
    return Scaled(layers, network).train(network.training)


def _check_scales(layer: Standardize, columns: Sequence[str]) -> None:
    """Refuse columns whose spread single precision cannot hold."""
    tiny = torch.finfo(torch.float32).tiny
    lost = torch.nonzero(~((layer.std >= tiny) & torch.isfinite(layer.std))).flatten().tolist()
    if lost:
        raise DataError(
            f"column {columns[lost[0]]!r} has a standard deviation of {float(layer.std[lost[0]]):.1g} on the "
            "training rows, which float32 cannot divide by; multiply the column by a constant."
        )


def find_groups(network: nn.Module, recipe: Recipe, data: Data, probe: Inputs) -> list[GroupSet]:
    """Every group set of a network, planned from a trace and proved on numbers."""
    axes = [spec.axis for spec in recipe.model.inputs]
    names = [spec.name for spec in recipe.model.inputs]
    example = tuple(torch.cat([x[:4], x[-4:]]) for x in probe)
    planned = plan_units(network, example, axes, names, recipe.allow_inexact)
    sets = _with_every_input(planned, data)
    if isinstance(network, Scaled):  # layers keep the names the user gave them
        sets = [
            replace(
                s,
                name=s.name.removeprefix("network."),
                refused=s.refused and s.refused.replace("'network.", "'"),
            )
            for s in sets
        ]
    spans = {part.name: span for part, span in zip(data.inputs, data.spans, strict=True)}
    return [
        input_groups(s, _own_fields(data, spans[s.name])) if s.kind == "input" else hidden_groups(s)
        for s in sets
    ]


def _with_every_input(sets: list[UnitSet], data: Data) -> list[UnitSet]:
    """Put a refused set where the plan has none for an input with an axis; inputs come first, in order."""
    found = {s.name: s for s in sets if s.kind == "input"}
    inputs = [
        found.get(part.name) or UnitSet(part.name, "input", len(part.features), (), _unplanned(part))
        for part in data.inputs
        if part.axis is not None
    ]
    return [*inputs, *(s for s in sets if s.kind == "hidden")]


def _unplanned(part: InputColumns) -> str:
    """Why the plan has no set for an input."""
    if len(part.features) == 1:
        return "there is one only, and an input needs one"
    return "the plan has no layer that reads them"


def _own_fields(data: Data, span: range) -> list[tuple[str, tuple[int, ...]]]:
    """The fields of one input, columns counted within it."""
    return [(f.name, tuple(c - span.start for c in f.columns)) for f in data.fields if f.columns[0] in span]


def first_rows(split: Split, rows: int) -> Inputs:
    """The first rows of a split."""
    inputs, _ = next(split.batches(rows, None))
    return inputs


def validate(job: Job, network: nn.Module, narrow: Callable[[Inputs], Inputs]) -> float:
    """The selection metric of a network on the validation split.

    Raises:
        NonFiniteError: It is not a number.
    """
    network.eval()
    (output,), target = predict(lambda x: (job.task.view(network(*x)),), job.data.valid, narrow)
    value = job.task.metric(job.metric, output, target)
    if not math.isfinite(value):
        raise NonFiniteError(
            f"{job.metric} on the validation split is {value}; lower train.lr and refit.lr, or check the "
            "scale of columns and target."
        )
    return value


def caller(network: nn.Module) -> Callable[[Inputs], tuple[Tensor, ...]]:
    """A network as a function from the tuple of its inputs to the tuple of its outputs."""
    return lambda inputs: leaves(network(*inputs))


def everything(inputs: Inputs) -> Inputs:
    """Take all columns of a batch."""
    return inputs


def _check_rows(network: nn.Module, data: Data, recipe: Recipe) -> None:
    """Run every row once: a code may be past the end of a table, a value too large for a layer."""
    for name, split in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        ends, rows = [], 0
        for inputs, target in split.batches(_CHECKED_ROWS, None):
            _try_forward(network, inputs, data, f"{name} split", rows + 1)
            rows += len(target)
            if target.ndim == 1:
                ends += [target.min(), target.max()]
        if ends:
            _check_range(
                float(min(ends)), float(max(ends)), data, f"{recipe.where('data')}: the {name} split"
            )


def _check_range(low: float, high: float, data: Data, split: str) -> None:
    """Refuse targets that nothing can be measured against."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{split} has targets that float32 does not hold; scale the target.")
    if low == high:
        only = f"class {data.classes[int(low)]!r}" if data.classes is not None else f"the target {low:g}"
        raise DataError(f"{split} holds {only} only; nothing can be measured.")


def _try_forward(
    network: nn.Module, inputs: Inputs, data: Data, split: str = "data", first_row: int = 1
) -> object:
    try:
        with torch.no_grad():
            output = network(*inputs)
    except GlpruneError:
        raise
    except Exception as error:  # the user's forward may raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ModelError(
            f"The network does not run on the data, {len(data.features)} columns, input shape {shapes} "
            f"({first}); compare data.features and model.inputs with what the network was trained on."
        ) from error
    if not all_finite(y for y in leaves(output) if y.is_floating_point()):
        raise ModelError(
            f"The network returns NaN or Inf on the {split}: {first_fault(network, inputs, first_row)}; "
            "check the scale of the columns and data.standardize."
        )
    return output


def _probe(network: nn.Module, real: Inputs, axes: Sequence[int | None], seed: int) -> Inputs:
    """Real rows and random ones around them, of those the ones on which the network's outputs are finite."""
    noise = random_like(real, axes, PROBE_ROWS, seed)
    with torch.no_grad():
        sound = finite_rows(leaves(network(*noise)))
    return tuple(torch.cat([x, z[sound]]) for x, z in zip(real, noise, strict=True))
