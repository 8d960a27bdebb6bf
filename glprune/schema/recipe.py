"""The recipe: every setting of a run, checked before anything is done.

A recipe is YAML 1.2. Unknown keys, wrong types and contradictions are refused with
``file:line:``, the key and the mend. Paths in a recipe are relative to its folder.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    model_validator,
)
from ruamel.yaml import YAML

from glprune._plugins import Group

METRICS: dict[str, tuple[str, ...]] = {
    "binary": ("auroc", "accuracy", "log_loss"),
    "multiclass": ("accuracy", "log_loss"),
    "regression": ("r2", "rmse", "mae"),
    "distillation": ("r2", "rmse", "cosine"),
}
HIGHER_IS_BETTER = {
    "auroc": True,
    "accuracy": True,
    "log_loss": False,
    "r2": True,
    "rmse": False,
    "mae": False,
    "cosine": True,
}
Scalar = str | int | float | bool | None
Text = Annotated[str, StringConstraints(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Factor = Annotated[float, Field(ge=1e-9, le=1e9)]  # on lambda: single precision must hold their products
Names = Text | Annotated[list[Text], Field(min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")]
AxisNumber = Annotated[str, StringConstraints(pattern=r"^-?\d+$")]
_PERCENT = r"^(100(\.0+)?|\d?[1-9](\.\d+)?|[1-9]0(\.\d+)?|00?\.0*[1-9]\d*)\s?%$"  # above 0, at most 100
Budget = Annotated[str, StringConstraints(pattern=_PERCENT)] | Positive
BatchSize = Annotated[int, Field(ge=1)] | Literal["all"]
BATCH_LABEL = "batch"
"""Label of the axis of rows in an ONNX file; no axis of ``export.dynamic_axes`` may have it."""
AUTO_MULTIPLE = 8  # floats of an AVX2 register; half of one of AVX-512
FASTER = 0.02  # by which networks of such widths must be faster, beyond a clock's noise


class Section(BaseModel):
    """A part of a recipe: frozen, strict, no unknown key, no NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True
    )


def _twice(names: Iterable[str]) -> str | None:
    """The first name that is there more than once."""
    return next((name for name, times in Counter(names).items() if times > 1), None)


class InputSpec(Section):
    """One input of the network."""

    name: str = Field(
        "features", pattern=r"^[A-Za-z_]\w*$", description="Name of the input in the ONNX file."
    )
    axis: int | None = Field(
        -1,
        description="Axis of a batch that holds the features; never 0, the batch. null: the input has no "
        "features to prune (ids, masks) and is passed through.",
    )
    columns: Annotated[list[Text], Field(min_length=1)] | None = Field(
        None,
        description="Files: the columns that feed this input, in order, by name or pattern. With one input "
        "it may be left out.",
    )
    dtype: Literal["float", "int"] = Field(
        "float", description="int: the columns are codes, passed as int64 and never standardised."
    )

    @model_validator(mode="after")
    def _axis_is_not_the_batch(self) -> InputSpec:
        if self.axis == 0:
            raise ValueError("axis: 0 is the batch; give the axis of the features, such as 1 or -1")
        return self


class ModelSpec(Section):
    """How the network is built."""

    factory: str = Field(
        pattern=r"^[^:]+:[A-Za-z_]\w*$",
        description="What builds the network: 'package.module:function' or 'relative/file.py:function'.",
    )
    arguments: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="Keyword arguments of the factory."
    )
    loader: Text | None = Field(
        None,
        description="Plugin that reads the weights' file (entry point of the group glprune.loaders); "
        "default: state dicts of torch.save and safetensors.",
    )
    inputs: list[InputSpec] = Field(
        default_factory=lambda: [InputSpec()], min_length=1, description="The network's inputs, in order."
    )
    output: Literal["logits", "probabilities"] = Field(
        "logits", description="What the network returns for classes."
    )
    prediction: Annotated[int, Field(ge=0)] | Text | None = Field(
        None,
        description="Where the network returns several tensors: number or name of the one the task is "
        "about. Default the first.",
    )
    outputs: Annotated[list[Name], Field(min_length=1)] | None = Field(
        None,
        description="Names of the outputs in the ONNX file, in the order the network returns them. Default: "
        "'prediction' for the one the task is about, else the key in a returned mapping or output_<number>.",
    )

    @model_validator(mode="after")
    def _names_are_distinct(self) -> ModelSpec:
        names = [spec.name for spec in self.inputs]
        double = _twice(names)
        if double is not None:
            raise ValueError(f"inputs lists {double!r} twice; give every input a name of its own")
        double = _twice([*set(names), *(self.outputs or [])])
        if double is not None:
            raise ValueError(f"outputs: the name {double!r} is taken; give every output a name of its own")
        return self


class SplitSpec(Section):
    """How one file is divided; shares are drawn with the recipe's seed."""

    train: Share | None = Field(None, description="Share of rows to train on; default 0.6.")
    valid: Share | None = Field(None, description="Share of rows that choose lambda; default 0.2.")
    test: Share | None = Field(None, description="Share of rows the report measures on; default 0.2.")
    stratify: bool | None = Field(
        None, description="Keep the class shares in every split; default yes for classes."
    )
    column: Text | None = Field(
        None, description="Column holding 'train', 'valid' or 'test' for each row, instead of shares."
    )

    @model_validator(mode="after")
    def _one_way_to_split(self) -> SplitSpec:
        given = [s for s in (self.train, self.valid, self.test) if s is not None]
        if self.column is not None and (given or self.stratify is not None):
            raise ValueError("column and shares contradict each other; keep one of them")
        if given and (len(given) < 3 or not math.isclose(sum(given), 1.0, abs_tol=1e-9) or min(given) == 0):
            raise ValueError("train, valid and test must all be given, be above 0 and add up to 1")
        return self

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of train, valid and test."""
        return (self.train or 0.6, self.valid or 0.2, self.test or 0.2)


class StreamSpec(Section):
    """How rows are streamed instead of held in memory."""

    buffer_mb: Positive = Field(
        256.0,
        description="Megabytes of rows in memory: half are shuffled together and in use while the other "
        "half is read. Results depend on it, never on the machine's memory.",
    )


class DataSpec(Section):
    """Where the rows are and what the columns mean."""

    file: Text | None = Field(None, description="CSV, Parquet, or a folder of Parquet files, to be split.")
    train: Text | None = Field(None, description="File of training rows.")
    valid: Text | None = Field(None, description="File of validation rows, which choose lambda.")
    test: Text | None = Field(None, description="File of test rows, which the report measures on.")
    loader: Text | None = Field(
        None,
        description="'module:function' or 'file.py:function' called with split='train'|'valid'|'test' "
        "and returning a DataLoader of (inputs, target); inputs: a tensor, a tuple, or a mapping by name.",
    )
    source: Text | None = Field(
        None,
        description="Plugin that yields the rows as a loader does (entry point of the group glprune.data).",
    )
    arguments: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="Keyword arguments of the source."
    )
    split: SplitSpec | None = Field(None, description="How `file` is divided; default 0.6/0.2/0.2.")
    target: Text | None = Field(None, description="Column to predict; none for distillation.")
    features: Annotated[list[Text], Field(min_length=1)] | None = Field(
        None,
        description="Columns in the network's input order; names or patterns such as 'px_*', which expand "
        "in file order. Default: every column but target, split column and `exclude`. Loaders: names of the "
        "features of all inputs, in order.",
    )
    exclude: list[Text] = Field(default_factory=list, description="Columns that are not features.")
    feature_groups: dict[Text, Names] = Field(
        default_factory=dict,
        description="Feature -> its columns by name or pattern; they live and die together.",
    )
    classes: Annotated[list[str | int], Field(min_length=2)] | None = Field(
        None,
        description="Class labels in the order of the network's outputs; for binary the second is the "
        "positive class. Default: the labels sorted.",
    )
    standardize: Literal["none", "train"] = Field(
        "none",
        description="'train' puts (x - mean) / std of the training rows in front of the network, inside "
        "the exported file; 'none' feeds the columns as they are.",
    )
    stream: StreamSpec | None = Field(
        None,
        description="Read rows from Parquet files whenever they are needed; null: held in memory. {} takes "
        "the defaults.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        files = [self.train, self.valid, self.test]
        if any(files) and not all(files):
            raise ValueError("train, valid and test must be given together")
        sources = [self.file is not None, all(files), self.loader is not None, self.source is not None]
        if sum(sources) != 1:
            raise ValueError("give exactly one of file, train+valid+test, loader or source")
        if self.arguments and self.source is None:
            raise ValueError("arguments are those of source; remove them")
        if self.yields and self.target is not None:
            raise ValueError("target contradicts loader, which yields the target itself; remove one")
        if self.split is not None and self.file is None:
            raise ValueError("split divides `file` only; remove it")
        if self.yields and (self.standardize != "none" or self.exclude):
            raise ValueError("standardize and exclude work on files; do both inside the loader")
        if self.yields and self.stream is not None:
            raise ValueError("stream contradicts loader, which streams by itself; remove one")
        return self

    @property
    def yields(self) -> bool:
        """Whether rows come from code, a loader or a plugin, and not from files."""
        return self.loader is not None or self.source is not None


class Strength(Section):
    """Strength of one kind of group relative to lambda."""

    strength: Factor = Field(1.0, description="weight_g = strength * sqrt(size of the group).")


class HiddenStrength(Strength):
    """Strength of hidden units, of each layer if need be."""

    layers: dict[Text, Factor | Annotated[float, Field(ge=0, le=0)]] = Field(
        default_factory=dict,
        description="Layer name or pattern -> factor on strength; 0 leaves the layer alone. Names as "
        "'glprune inspect' lists them.",
    )


class PenaltySpec(Section):
    """Which groups are penalised, and how."""

    kind: Literal["group_lasso", "sparse_group_lasso", "group_mcp", "plugin"] = Field(
        "group_lasso",
        description="group_lasso: whole groups; sparse_group_lasso: single weights within the groups too; "
        "group_mcp: whole groups with less shrinkage of those that stay (minimax concave penalty); plugin: "
        "what `plugin` names.",
    )
    plugin: Text | None = Field(
        None,
        description="kind plugin: its name (entry point of the group glprune.penalties). It is held to what "
        "a penalty must be on random numbers, and refused where it is not.",
    )
    arguments: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="Keyword arguments of the plugin."
    )
    l1_ratio: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="sparse_group_lasso: share of the L1 term on single weights; default 0.05.",
    )
    gamma: Annotated[float, Field(gt=1)] | None = Field(
        None,
        description="group_mcp: a group whose norm is this many times its trained one is not penalised "
        "further; at its trained norm it feels 1 - 1/gamma of the pull. Large is the group LASSO; "
        "default 1.2.",
    )

    inputs: Strength | None = Field(
        default_factory=Strength, description="Input features; null leaves them alone."
    )
    hidden: HiddenStrength | None = Field(None, description="Hidden neurons; null leaves them alone.")
    weights: Literal["size", "adaptive"] = Field(
        "adaptive",
        description="size: weight_g = strength * sqrt(size of the group); adaptive: that over the root mean "
        "square of the group's weights where the stage begins, so that weak groups go first (adaptive group "
        "LASSO).",
    )

    input_strengths: Annotated[list[Factor], Field(min_length=1)] = Field(
        default_factory=lambda: [0.3, 1.0, 3.0],
        description="Where inputs and hidden units share one budget: factors on the strength of inputs, all "
        "tried in every stage; the best on the validation split goes on.",
    )

    @property
    def input_strength_list(self) -> tuple[float, ...]:
        """The balances to try."""
        return tuple(self.input_strengths)

    @property
    def l1_share(self) -> float:
        """The share of the L1 term of the sparse group LASSO."""
        return 0.05 if self.l1_ratio is None else self.l1_ratio

    @property
    def knot(self) -> float:
        """Where the group MCP ends, in trained norms."""
        return 1.2 if self.gamma is None else self.gamma

    @model_validator(mode="after")
    def _constants_are_of_the_kind(self) -> PenaltySpec:
        if self.l1_ratio is not None and self.kind != "sparse_group_lasso":
            raise ValueError("l1_ratio belongs to kind: sparse_group_lasso; remove it")
        if self.gamma is not None and self.kind != "group_mcp":
            raise ValueError("gamma belongs to kind: group_mcp; remove it")
        if (self.plugin is not None) != (self.kind == "plugin"):
            raise ValueError("plugin and kind: plugin belong together; give both or neither")
        if self.arguments and self.plugin is None:
            raise ValueError("arguments are those of plugin; remove them")
        return self

    @model_validator(mode="after")
    def _something_is_penalised(self) -> PenaltySpec:
        if self.inputs is None and self.hidden is None:
            raise ValueError("inputs and hidden are both null; nothing would be pruned")
        return self


class MaxDrop(Section):
    """How much a validation metric may lose against the original network."""

    metric: Literal["auroc", "accuracy", "log_loss", "r2", "rmse", "mae", "cosine"] = Field(
        description="binary: auroc, accuracy, log_loss; multiclass: accuracy, log_loss; "
        "regression: r2, rmse, mae; distillation: r2, rmse, cosine."
    )
    amount: Annotated[float, Field(ge=0)] = Field(
        description="Largest loss after the refit; for log_loss, rmse and mae the largest rise."
    )


class TargetSpec(Section):
    """What the smallest network is to satisfy: one key, or ``max_hidden`` beside one of the first three.

    With ``max_hidden`` beside another key the hidden units are left out of those paths and get
    their own, on the refitted slim network.
    """

    max_features: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Keep at most this many features."
    )
    max_drop: MaxDrop | None = Field(None, description="The smallest network that loses no more than this.")
    lam: Annotated[float, Field(ge=0, le=1e9)] | None = Field(
        None, alias="lambda", description="Exactly this strength of the penalty."
    )
    parameters: Budget | None = Field(
        None, description="At most so many parameters, or a share of them such as 30%."
    )
    macs: Budget | None = Field(
        None, description="At most so many multiply-accumulates for one row, or a share of them."
    )
    latency: Budget | None = Field(
        None,
        description="At most so many milliseconds, or a share of the original's, measured on the ONNX files "
        "by ONNX Runtime on this machine.",
    )
    batch: Annotated[int, Field(ge=1, le=2**20)] = Field(
        1, description="Rows of one call, for latency and round_to: auto."
    )
    round_to: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        1,
        description="Hidden widths are rounded up to multiples of this, or to what they were: zero units "
        "stay for the refit, and every size counts them. auto: multiples of 8 in a stage where ONNX Runtime "
        "is faster with them.",
    )
    max_hidden: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Keep at most this many hidden units. Beside one of the first three: by paths of their "
        "own, after the inputs were chosen and the network refitted.",
    )

    @model_validator(mode="after")
    def _one_target(self) -> TargetSpec:
        budgets = [k for k in ("parameters", "macs", "latency") if getattr(self, k) is not None]
        given = len(budgets) + sum(v is not None for v in (self.max_features, self.max_drop, self.lam))
        if given > 1 or (given == 0 and self.max_hidden is None):
            raise ValueError(
                "give exactly one of max_features, max_drop, lambda, parameters, macs or latency, or "
                "max_hidden alone"
            )
        if budgets and self.max_hidden is not None:
            raise ValueError(f"max_hidden contradicts {budgets[0]}, which counts hidden units too; keep one")
        if self.batch != 1 and self.latency is None and self.round_to != "auto":
            raise ValueError("batch belongs to latency and round_to: auto; remove it")
        return self

    @property
    def size_metric_round_to(self) -> int:
        """The multiple of hidden widths that sizes are counted with: of both for auto the larger."""
        return AUTO_MULTIPLE if self.round_to == "auto" else self.round_to

    @property
    def hidden_alone(self) -> bool:
        """Whether ``max_hidden`` is the only target."""
        others = (self.max_features, self.max_drop, self.lam, self.parameters, self.macs, self.latency)
        return all(value is None for value in others)


class TrainSpec(Section):
    """How each point of the path is trained."""

    optimizer: Literal["adam", "sgd"] = Field("adam", description="Proximal Adam or proximal SGD.")
    lr: Positive = Field(1e-3, description="Step size, as in torch.optim.")
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Momentum of sgd; default 0.9."
    )
    batch_size: BatchSize = Field(128, description="Rows of one step, or all.")
    epochs: Annotated[int, Field(ge=0)] = Field(
        5,
        description="Epochs at each lambda, at most; one of fewer than 20 steps goes over the rows again.",
    )
    tolerance: Annotated[float, Field(ge=0, lt=1)] = Field(
        1e-3,
        description="A point ends early where an epoch removed no group and lowered the objective by less "
        "than this share; 0: never.",
    )
    n_stages: Annotated[int, Field(ge=1, le=1000)] = Field(
        8,
        description="Paths one after another, each a step of the way to the target: between two of them the "
        "zero groups are cut, the rest is refitted without penalty and weighted anew. 1: one path.",
    )
    stage_refit_epochs: Annotated[int, Field(ge=0)] = Field(
        5, description="Epochs of the refit between two stages, at most."
    )
    n_lambdas: Annotated[int, Field(ge=2, le=10_000)] = Field(
        4, description="Lambdas up to lambda_max, in each stage."
    )
    lambda_min_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1,
        description="First lambda of the grid over lambda_max. Below, hardly a group leaves, and a network "
        "trained there learns its rows by heart before the choice begins.",
    )
    full_batch_steps: Annotated[int, Field(ge=0)] = Field(
        20, description="Full-batch accelerated proximal steps that close each selected point."
    )
    max_lr_halvings: Annotated[int, Field(ge=0, le=100)] = Field(
        0,
        description="How often a point may begin anew with half the step size, since a loss, a gradient or a "
        "weight was not finite; the report says how often. 0: the run stops and names batch and layer.",
    )
    precision: Literal["float32", "bf16"] = Field(
        "float32",
        description="Of the forward passes in the stochastic steps of path and refit; bf16 multiplies "
        "matrices in bfloat16. Penalty, proximal step, full-batch steps, optimality conditions and "
        "validation stay in float32.",
    )
    constrain_unpenalised: bool = Field(
        True, description="Hold weights outside every group inside the ball of their trained norm."
    )

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> TrainSpec:
        if self.optimizer != "sgd" and self.momentum is not None:
            raise ValueError("momentum belongs to optimizer: sgd; remove it")
        if self.epochs == 0 and self.full_batch_steps == 0:
            raise ValueError("epochs and full_batch_steps are both 0; nothing would be trained")
        return self


class RefitSpec(Section):
    """The training without penalty on the slim network."""

    epochs: Annotated[int, Field(ge=0)] = Field(100, description="At most; 0 skips the refit.")
    start: Literal["best", "trained", "path"] = Field(
        "best",
        description="Weights to start from: the trained network's on the kept units, the shrunken ones of "
        "the path, or the one of both that ends better on the validation split.",
    )
    lr: Positive = Field(1e-3, description="Step size of AdamW.")
    batch_size: BatchSize = Field(128, description="Rows of one step, or all.")
    max_lr_halvings: Annotated[int, Field(ge=0, le=100)] = Field(
        0,
        description="How often a refit may begin anew with half the step size, since a loss, a gradient or a "
        "weight was not finite; the report says how often. 0: the run stops and names batch and layer.",
    )
    patience: Annotated[int, Field(ge=1)] = Field(
        30, description="Stop after this many epochs without a better validation metric."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="Weight decay of AdamW.")
    dropout: Literal["scaled", "kept", "off"] = Field(
        "scaled",
        description="The network's own dropout during the refit; scaled multiplies its rates by the root of "
        "the share of parameters left.",
    )
    distill: Share | None = Field(
        None,
        description="Share of the loss that follows the original network's predictions; default 0.5 where "
        "all inputs are kept, 0 where the original reads what the slim network may not.",
    )
    temperature: Positive = Field(2.0, description="Softening of the predictions that are followed.")


class ExportSpec(Section):
    """The shipped ONNX file."""

    signature: Literal["slim", "original"] = Field(
        "slim", description="slim: the input holds the kept columns only; original: all, gathered inside."
    )
    plugins: list[Text] = Field(
        default_factory=list,
        description="Plugins that write more once the bundle is finished, each into a folder beside it, "
        "BUNDLE.NAME (entry points of the group glprune.exporters).",
    )
    opset: Annotated[int, Field(ge=17, le=21)] = Field(18, description="ONNX operator set.")
    names: Literal["auto", "all", "digest"] = Field(
        "auto",
        description="all: the ONNX file carries the names of its columns; digest: their number and SHA-256, "
        "the names are in the report and in input_schema.json; auto: the names, unless the file then had "
        "more bytes than four for each parameter, 5 % and 4 kB.",
    )
    quantize: Literal["int8"] | None = Field(
        None,
        description="int8: a second file, model.int8.onnx, in 8-bit integers, measured like the first. It is "
        "not lossless: model.onnx stays the certified file. null: none.",
    )
    dynamic_axes: dict[Text, dict[AxisNumber, Name]] = Field(
        default_factory=dict,
        description="Input -> axis: label, for axes of any length besides the batch; equal labels are equal "
        "lengths.",
    )

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """``dynamic_axes`` with the axes as numbers."""
        return {
            name: {int(a): label for a, label in axes.items()} for name, axes in self.dynamic_axes.items()
        }


class StabilitySpec(Section):
    """How firm the choice of features is: the search again on random parts of the training rows."""

    n_resamples: Annotated[int, Field(ge=0, le=10_000)] = Field(
        50,
        description="Random parts of the training rows; on each the search goes on until it keeps as few "
        "features as the shipped model. Halves come in complementary pairs, so their number is even. 0: drop "
        "costs alone.",
    )
    subsample: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Share of the training rows in a resample, drawn without replacement, by class."
    )
    seeds: Literal["per_resample", "recipe"] = Field(
        "per_resample",
        description="own: each search shuffles by a seed of its own; recipe: all by the recipe's, so that "
        "their rows alone differ.",
    )
    threshold: Annotated[float, Field(gt=0.5, le=1)] = Field(
        0.9, description="A feature kept in at least this share of the resamples is called stable."
    )
    drop_cost: bool = Field(
        False,
        description="Measure what it costs to drop each kept feature: cut from the shipped network, refit, "
        "metric on the validation and the test split.",
    )

    @model_validator(mode="after")
    def _something_differs(self) -> StabilitySpec:
        if self.n_resamples == 0 and not self.drop_cost:
            raise ValueError("n_resamples: 0 measures drop costs alone; set drop_cost: true, or n_resamples")
        if self.n_resamples == 1:
            raise ValueError("n_resamples: 1 has nothing to be compared with; take at least 2")
        if self.subsample == 0.5 and self.n_resamples % 2:
            raise ValueError(
                f"n_resamples: {self.n_resamples} is odd; halves come in complementary pairs, take "
                f"{self.n_resamples + 1}"
            )
        if self.subsample == 1 and self.seeds == "recipe" and self.n_resamples:
            raise ValueError("share: 1 with seeds: recipe is one search many times; set seeds: per_resample")
        return self


class WorkersSpec(Section):
    """Processes for what can be done side by side: paths of a stage, resamples, drop costs."""

    engine: Literal["auto", "local", "ray"] = Field(
        "auto",
        description="local: processes of this machine; ray: workers on Ray (glprune[ray]), of the cluster "
        "joined already or named by RAY_ADDRESS, else of one on this machine; auto: ray where it is "
        "installed and starts. No result depends on it.",
    )
    processes: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="Processes at work; default as many as the cores allow. Resamples and drop costs have a "
        "thread each, paths what threads says. No result depends on it.",
    )


class PolicySpec(Section):
    """Rules on features, and who is to be looked at: whatever the penalty says, these hold.

    A feature is named by its ``data.feature_groups`` name or by its column.
    """

    must_drop: list[Text] = Field(
        default_factory=list,
        description="Features cut out of the trained network before anything else, with all derived from them.",
    )
    must_keep: list[Text] = Field(
        default_factory=list, description="Features that are never penalised and stay."
    )
    derived_from: dict[Text, Names] = Field(
        default_factory=dict,
        description="Feature or column -> what it was made of: features, columns of the file, or names in "
        "must_drop.",
    )
    protected: list[Text] = Field(
        default_factory=list,
        description="Columns of the file, or one-hot features, by whose values metrics and decisions are "
        "reported; they need not be features (list them under data.exclude).",
    )
    bins: dict[Text, Annotated[list[float], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="Protected column of numbers -> ascending edges of its segments, each edge in the upper "
        "one. Default: the values, or the quartiles of the training rows where there are more than six.",
    )
    min_segment_rows: Annotated[int, Field(ge=1)] = Field(
        20, description="Segments of fewer test rows are named without figures."
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Binary: probability of the positive class from which on it is decided for; default 0.5. "
        "Several classes: the most probable one.",
    )
    adverse: Annotated[list[str | int], Field(min_length=1)] | None = Field(
        None,
        description="Classes that are adverse to the person, so that flipped decisions have a direction.",
    )
    reason_codes: dict[Text, Names] = Field(
        default_factory=dict,
        description="Feature -> reasons given to people (adverse-action reasons) that cite it, codes or texts.",
    )
    proxies: bool = Field(
        False,
        description="Measure in a file of its own, proxy.json, how well each protected attribute is "
        "predicted from kept inputs, from removed ones and from the score.",
    )

    @model_validator(mode="after")
    def _keys_fit_each_other(self) -> PolicySpec:
        for name, edges in self.bins.items():
            if name not in self.protected:
                raise ValueError(f"bins: {name!r} is not in protected; add it there or remove it")
            if any(a >= b for a, b in itertools.pairwise(edges)):
                raise ValueError(f"bins: the edges of {name!r} do not ascend")
        for key in ("must_drop", "must_keep", "protected"):
            names = getattr(self, key)
            double = _twice(names)
            if double is not None:
                raise ValueError(f"{key} lists {double!r} twice")
        if self.proxies and not self.protected:
            raise ValueError("proxies: true needs protected; name the attributes to be predicted")
        return self


class ReportSpec(Section):
    """What the report says of itself."""

    title: Text | None = Field(None, description="Heading; default the recipe's file name.")
    purpose: str = Field("", description="What the model is used for.")
    baselines: bool = Field(
        False,
        description="Measure what simpler selections of the same size give (random ones, the largest "
        "weights, permutation importance), each cut, refitted and run as an ONNX file.",
    )


class Recipe(Section):
    """A whole recipe."""

    version: Literal[2] = Field(2, description="Version of the recipe format.")
    task: Literal["binary", "multiclass", "regression", "distillation"] = Field(
        description="What the network predicts; distillation: no labels, the slim network is to agree with "
        "the original one."
    )
    model: ModelSpec
    data: DataSpec
    penalty: PenaltySpec = Field(default_factory=PenaltySpec)
    target: TargetSpec
    train: TrainSpec = Field(default_factory=TrainSpec)
    refit: RefitSpec = Field(default_factory=RefitSpec)
    export: ExportSpec = Field(default_factory=ExportSpec)
    stability: StabilitySpec | None = Field(
        None, description="How firm the choice of features is; null: not measured."
    )
    workers: WorkersSpec = Field(default_factory=WorkersSpec)
    policy: PolicySpec | None = Field(None, description="Rules on features; null: none.")
    report: ReportSpec = Field(default_factory=ReportSpec)
    allow_inexact: bool = Field(
        False,
        description="Cut units that LayerNorm, RMSNorm, softmax or a mean mixes too; the report shows by how "
        "much each such cut changed the outputs.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of every random choice.")
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="Threads of one tensor operation, in PyTorch and ONNX Runtime, whatever the machine has: "
        "sums are split among them, so that each number has results of its own. More are faster for large "
        "networks.",
    )

    _source: Path | None = PrivateAttr(None)
    _sha256: str | None = PrivateAttr(None)
    _lines: dict[tuple[Any, ...], int] = PrivateAttr(default_factory=dict)
    _allowed: tuple[str, ...] | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        drop = self.target.max_drop
        if drop is not None and drop.metric not in METRICS[self.task]:
            allowed = ", ".join(METRICS[self.task])
            raise ValueError(
                f"target.max_drop.metric: {drop.metric} is not of a {self.task} task; take {allowed}"
            )
        classes = self.data.classes
        if classes is not None and self.task in ("regression", "distillation"):
            raise ValueError(f"data.classes contradicts task: {self.task}; remove one")
        if classes is not None and len({str(c) for c in classes}) < len(classes):
            raise ValueError("data.classes lists a class twice")
        if classes is not None and self.task == "binary" and len(classes) != 2:
            raise ValueError(f"data.classes lists {len(classes)} classes; task: binary takes two")
        if self.penalty.inputs is not None and all(spec.axis is None for spec in self.model.inputs):
            raise ValueError("penalty.inputs: no input has an axis of features; set penalty.inputs: null")
        if self.target.max_features is not None and self.penalty.inputs is None:
            raise ValueError("target.max_features needs penalty.inputs, which is null")
        if self.target.max_hidden is not None and self.penalty.hidden is None:
            raise ValueError("target.max_hidden needs penalty.hidden; add 'hidden: {strength: 1}' there")
        target, inputs = self.target, self.penalty.inputs
        if target.max_hidden is not None and inputs is None and not target.hidden_alone:
            raise ValueError("target.max_hidden follows a path over inputs here; keep it alone")
        if target.hidden_alone and inputs is not None:
            raise ValueError("target.max_hidden alone says nothing of inputs; set penalty.inputs: null")
        return self

    @model_validator(mode="after")
    def _stability_has_something_to_vary(self) -> Recipe:
        spec = self.stability
        if spec is None or spec.n_resamples == 0:
            return self
        if self.penalty.inputs is None:
            raise ValueError(
                "stability.n_resamples needs penalty.inputs, which is null; set it to 0 for drop costs alone"
            )
        if spec.subsample == 1 and (self.train.batch_size == "all" or self.train.epochs == 0):
            raise ValueError(
                "stability.subsample: 1 varies the shuffling alone; train.batch_size: all or epochs: 0 has none"
            )
        return self

    @model_validator(mode="after")
    def _nothing_holds_streamed_rows(self) -> Recipe:
        if self.data.stream is None:
            return self
        for name, size in (("train", self.train.batch_size), ("refit", self.refit.batch_size)):
            if size == "all":
                raise ValueError(
                    f"{name}.batch_size: all holds every row in memory, which data.stream is to spare; give "
                    "a number"
                )
        if self.policy is not None and self.policy.proxies:
            raise ValueError(
                "policy.proxies: true holds every row in memory, which data.stream is to spare; remove one"
            )
        return self

    @model_validator(mode="after")
    def _policy_fits_the_task(self) -> Recipe:
        spec = self.policy
        if spec is None:
            return self
        if spec.protected and self.data.yields:
            raise ValueError(
                "policy.protected needs a file whose columns it names; data.loader has none, give data.file"
            )
        if spec.threshold is not None and self.task != "binary":
            raise ValueError(f"policy.threshold contradicts task: {self.task}; it is for binary, remove it")
        if spec.adverse is not None and self.task not in ("binary", "multiclass"):
            raise ValueError(f"policy.adverse contradicts task: {self.task}, which has no classes; remove it")
        return self

    @model_validator(mode="after")
    def _task_fits_its_data(self) -> Recipe:
        data = self.data
        if self.task != "distillation":
            if not data.yields and data.target is None:
                raise ValueError("data: target is missing; name the column to predict")
            return self
        if data.target is not None:
            raise ValueError(
                "data.target contradicts task: distillation, which follows the original network; remove it, "
                "and list the column under data.exclude"
            )
        if data.split is not None and data.split.stratify:
            raise ValueError("data.split: stratify needs classes; task: distillation has none, remove it")
        if self.refit.distill:
            raise ValueError("refit.distill contradicts task: distillation, which distils already; remove it")
        if self.model.prediction is not None:
            raise ValueError(
                "model.prediction contradicts task: distillation, which follows every output; remove it"
            )
        return self

    @model_validator(mode="after")
    def _inputs_fit_the_data(self) -> Recipe:
        inputs, data = self.model.inputs, self.data
        if data.yields:
            named = next((spec.name for spec in inputs if spec.columns is not None), None)
            if named is not None:
                raise ValueError(f"model.inputs: columns of {named!r} contradict data.loader; remove them")
            return self
        bare = next((spec.name for spec in inputs if spec.columns is None), None)
        if len(inputs) > 1 and bare is not None:
            raise ValueError(f"model.inputs: {bare!r} has no columns; name the columns that feed each input")
        odd = next((spec for spec in inputs if spec.axis not in (None, 1, -1)), None)
        if odd is not None:
            raise ValueError(
                f"model.inputs: axis {odd.axis} of {odd.name!r}; files give (rows, columns), axis 1"
            )
        return self

    @model_validator(mode="after")
    def _dynamic_axes_are_of_inputs(self) -> Recipe:
        inputs = {spec.name: spec for spec in self.model.inputs}
        for name, axes in self.export.dynamic_axes.items():
            if name not in inputs:
                raise ValueError(
                    f"export.dynamic_axes: no input {name!r}; the inputs are {', '.join(inputs)}"
                )
            if str(inputs[name].axis) in axes:
                raise ValueError(
                    f"export.dynamic_axes: axis {inputs[name].axis} of {name!r} holds the features, whose "
                    "number is fixed; remove it"
                )
        return self

    @property
    def source(self) -> Path | None:
        """The recipe's file; None where it was built in Python."""
        return self._source

    @property
    def folder(self) -> Path:
        """The folder paths are relative to."""
        return self._source.parent if self._source else Path()

    @property
    def sha256(self) -> str | None:
        """Digest of the file as written."""
        return self._sha256

    @property
    def allowed(self) -> tuple[str, ...] | None:
        """The packages and files its factory and loader may be imported from; None: any."""
        return self._allowed

    @property
    def plugins(self) -> list[tuple[Group, str]]:
        """Group and name of each plugin that the recipe names."""
        named: list[tuple[Group, str | None]] = [
            ("glprune.loaders", self.model.loader),
            ("glprune.data", self.data.source),
            ("glprune.penalties", self.penalty.plugin),
            *(("glprune.exporters", name) for name in self.export.plugins),
        ]
        return [(group, name) for group, name in named if name is not None]

    def allowing(self, packages: Sequence[str] | None) -> Recipe:
        """This recipe, its factory and loader held to some packages and files; None: as it is."""
        if packages is None:
            return self
        pinned = self.model_copy()
        pinned._allowed = (packages,) if isinstance(packages, str) else tuple(packages)
        return pinned

    def path(self, text: str) -> Path:
        """Resolve a path of the recipe."""
        return self.folder / text

    def where(self, *keys: str) -> str:
        """Name a key for an error: ``recipe.yaml:12: data.target``."""
        dotted = ".".join(keys)
        line = _nearest_line(self._lines, keys)
        return f"{self._source}:{line}: {dotted}" if self._source and line else dotted

    def to_yaml(self) -> str:
        """The recipe with every default written out; loads back to an equal recipe."""
        stream = io.StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.width = 4096
        yaml.dump(_without_none(self.model_dump(mode="json", by_alias=True)), stream)
        return stream.getvalue()


def _nearest_line(lines: Mapping[tuple[Any, ...], int], loc: Sequence[Any]) -> int | None:
    """The line of a key, or of the nearest key around it."""
    at = tuple(loc)
    while at and at not in lines:
        at = at[:-1]
    return lines.get(at)


_NULLABLE = ("inputs", "hidden", "axis")


def _without_none(value: Any) -> Any:
    """Drop keys that are null, but where null is a choice: penalties, an input's axis, arguments."""
    if isinstance(value, dict):
        return {
            k: v if k == "arguments" else _without_none(v)
            for k, v in value.items()
            if v is not None or k in _NULLABLE
        }
    if isinstance(value, list):
        return [_without_none(v) for v in value]
    return value
