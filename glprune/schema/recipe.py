"""The recipe: the settings of a run, as frozen models whose values are checked when they are made.

``glprune.schema.recipe_loading`` reads recipes from YAML and explains mistakes;
``glprune.schema.recipe_rules`` holds the rules between keys. Paths are relative to the recipe's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    model_validator,
)

from glprune.schema import recipe_rules
from glprune.schema.column_names import nfc
from glprune.schema.metrics import HIGHER_IS_BETTER, METRICS
from glprune.schema.strict_yaml import dump, nearest_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from glprune._plugins import Group
    from glprune.schema.strict_yaml import Lines

__all__ = [
    "AUTO_MULTIPLE",
    "FASTER",
    "HIGHER_IS_BETTER",
    "METRICS",
    "BatchSize",
    "Budget",
    "DataSpec",
    "Domain",
    "ExportSpec",
    "GroupWeights",
    "HiddenStrength",
    "InputSpec",
    "Jurisdiction",
    "MaxDrop",
    "ModelSpec",
    "PenaltyKind",
    "PenaltySpec",
    "PolicySpec",
    "Recipe",
    "RefitSpec",
    "ReportSpec",
    "Section",
    "SplitSpec",
    "StabilitySpec",
    "StreamSpec",
    "Strength",
    "TargetSpec",
    "TrainSpec",
    "WorkersSpec",
]

Scalar = str | int | float | bool | None
Text = Annotated[str, StringConstraints(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Factor = Annotated[float, Field(ge=1e-9, le=1e9)]  # on lambda: single precision must hold their products
ColumnName = Annotated[Text, AfterValidator(nfc)]
Names = ColumnName | Annotated[list[ColumnName], Field(min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")]
AxisNumber = Annotated[str, StringConstraints(pattern=r"^-?\d+$")]
_DEFAULT_DISTILL = 0.5  # share of the loss that follows the original network
_PERCENT = r"^(100(\.0+)?|\d?[1-9](\.\d+)?|[1-9]0(\.\d+)?|00?\.0*[1-9]\d*)\s?%$"  # above 0, at most 100
Budget = Annotated[str, StringConstraints(pattern=_PERCENT)] | Positive
ExporterChoice = Literal["auto", "dynamo", "torchscript"]
MetricName = Literal[
    "auroc",
    "accuracy",
    "log_loss",
    "brier_score",
    "calibration_error",
    "r2",
    "rmse",
    "mae",
    "cosine",
]
BatchSize = Annotated[int, Field(ge=1)] | Literal["all"]
PenaltyKind = Literal[
    "group_lasso", "sparse_group_lasso", "group_mcp", "tree_group_lasso", "latent_group_lasso", "plugin"
]
Domain = Literal["consumer_credit", "insurance", "medical_devices", "general"]
"""What a model is used for, as far as regulations are known; ``general`` has those that hold for any use."""
Jurisdiction = Literal["us", "ca", "uk", "eu"]
GroupWeights = Literal["size", "adaptive", "fisher", "taylor", "ablation"]
Sizes = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=50)]
BATCH_LABEL = "batch"
"""Label of the axis of rows in an ONNX file; no axis of ``export.dynamic_axes`` may have it."""
AUTO_MULTIPLE = 8
"""The multiple of ``round_to: auto``: the floats in a register of AVX2, half of one of AVX-512."""
FASTER = 0.02
"""The least relative speed-up for which ``round_to: auto`` rounds; smaller ones are within timing noise."""


class Section(BaseModel):
    """A section of a recipe: frozen, strict types, no unknown key, no NaN.

    Attributes:
        rules: What its keys must satisfy together.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True
    )
    rules: ClassVar[tuple[recipe_rules.Rule[Any], ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        recipe_rules.check_rules(self.rules, self)
        return self


class InputSpec(Section):
    """One input of the network."""

    rules = recipe_rules.INPUT_RULES

    name: str = Field(
        "features", pattern=r"^[A-Za-z_]\w*$", description="Name of the input in the ONNX file."
    )
    axis: int | None = Field(
        -1,
        description="Axis of a batch that holds the features; 0, the batch, is not allowed. null: the "
        "input has no features to prune (for example ids or masks) and is kept whole.",
    )
    columns: Annotated[list[ColumnName], Field(min_length=1)] | None = Field(
        None,
        description="For files: the columns that feed this input, in order, by name or pattern. A network "
        "with one input takes all features by default.",
    )
    dtype: Literal["float", "int"] = Field(
        "float", description="Type of the values. int: codes, passed as int64 and never standardised."
    )


class ModelSpec(Section):
    """How to build the network and what it takes and returns."""

    rules = recipe_rules.MODEL_RULES

    factory: str = Field(
        pattern=r"^[^:]+:[A-Za-z_]\w*$",
        description="Function that builds the network: 'package.module:function' or "
        "'relative/file.py:function'.",
    )
    arguments: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="Keyword arguments of the factory."
    )
    loader: Text | None = Field(
        None,
        description="Plugin that reads the weights file (entry point of the group glprune.loaders). By "
        "default state dicts saved by torch.save and safetensors files are read.",
    )
    inputs: list[InputSpec] = Field(
        default_factory=lambda: [InputSpec()], min_length=1, description="The network's inputs, in order."
    )
    output: Literal["logits", "probabilities"] = Field(
        "logits", description="What the network returns for classification tasks."
    )
    prediction: Annotated[int, Field(ge=0)] | Text | None = Field(
        None,
        description="Number or key of the tensor that holds the prediction, if the network returns "
        "several. Default: the first.",
    )
    outputs: Annotated[list[Name], Field(min_length=1)] | None = Field(
        None,
        description="Names of the outputs in the ONNX file, in the order in which the network returns "
        "them. Default: 'prediction' for the prediction; for the others their key in the returned mapping, "
        "or output_<number>.",
    )
    expect: dict[MetricName, Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="Metrics the trained network is known to have, such as {auroc: 0.903}. A run is refused "
        "where one of them differs on the test split by more than two standard errors and the rounding of "
        "the number: the network is then not used as it was trained.",
    )


class SplitSpec(Section):
    """How the rows of one file are split, at random with the recipe's seed or by a column."""

    rules = recipe_rules.SPLIT_RULES

    train: Share | None = Field(None, description="Share of rows for training; default 0.6.")
    valid: Share | None = Field(
        None, description="Share of rows for validation, on which lambda is chosen; default 0.2."
    )
    test: Share | None = Field(
        None, description="Share of rows for the test, on which the report measures; default 0.2."
    )
    stratify: bool | None = Field(
        None,
        description="Keep the proportions of the classes in every split; default true for classification.",
    )
    column: ColumnName | None = Field(
        None, description="Column that holds 'train', 'valid' or 'test' for each row; replaces the shares."
    )

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of train, valid and test."""
        return (self.train or 0.6, self.valid or 0.2, self.test or 0.2)


class ValidationSpec(Section):
    """The rows on which sets of features are compared."""

    folds: Annotated[int, Field(ge=1, le=100)] | Literal["auto"] = Field(
        "auto",
        description="Number of folds of the training and validation rows on which sets of features of the "
        "target's size are compared (cross-validation). 1: the validation split alone. auto: 5 where the "
        "validation split has fewer than 200 rows, or fewer than 100 of the rarer of two classes; else 1. "
        "Folds are made where sets are compared (see search) and another one is better than the path's "
        "on the validation split.",
    )
    repeats: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="How often the rows are divided into folds, each time at random."
    )


class StreamSpec(Section):
    """How to stream rows from files instead of holding them in memory."""

    buffer_mb: Positive = Field(
        256.0,
        description="Size of the buffer of rows, in MiB. One half is shuffled and in use while the other "
        "is read. Results depend on this number and not on the machine's memory.",
    )


class DataSpec(Section):
    """Where the rows come from and what the columns mean."""

    rules = recipe_rules.DATA_RULES

    file: Text | None = Field(
        None, description="CSV file, Parquet file or folder of Parquet files, to be split into three."
    )
    train: Text | None = Field(None, description="File of training rows.")
    valid: Text | None = Field(None, description="File of validation rows, on which lambda is chosen.")
    test: Text | None = Field(None, description="File of test rows, on which the report measures.")
    loader: Text | None = Field(
        None,
        description="Function 'package.module:function' or 'file.py:function' that is called with "
        "split='train', 'valid' or 'test' and returns a DataLoader of (inputs, target). The inputs are a "
        "tensor, a tuple of tensors, or a mapping by input name.",
    )
    source: Text | None = Field(
        None,
        description="Plugin that yields rows like a loader (entry point of the group glprune.data).",
    )
    arguments: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="Keyword arguments of the source."
    )
    split: SplitSpec | None = Field(
        None, description="How `file` is split. Default: 60 % training, 20 % validation, 20 % test rows."
    )
    validation: ValidationSpec = Field(
        default_factory=ValidationSpec, description="How sets of features are compared."
    )
    target: ColumnName | None = Field(None, description="Column to predict; not used by distillation.")
    features: Annotated[list[ColumnName], Field(min_length=1)] | None = Field(
        None,
        description="Feature columns in the order of the network's input, by name or by a pattern such as "
        "'px_*', which expands in file order. Default: every column except the target, the split column "
        "and `exclude`. For loaders: the names of the features of all inputs, in order.",
    )
    exclude: list[ColumnName] = Field(
        default_factory=list, description="Columns, by name or pattern, that are not features."
    )
    feature_groups: dict[ColumnName, Names] = Field(
        default_factory=dict,
        description="Features of several columns: name -> its columns, by name or pattern. The columns of "
        "a feature are kept or removed together.",
    )
    classes: Annotated[list[str | int], Field(min_length=2)] | None = Field(
        None,
        description="Class labels in the order of the network's outputs; for binary tasks the second is "
        "the positive class. Default: the sorted labels.",
    )
    standardize: Literal["none", "train"] | Annotated[list[ColumnName], Field(min_length=1)] = Field(
        "none",
        description="train: put (x - mean) / std of the training rows in front of the network, inside the "
        "exported file. A list of columns, by name or pattern: of these columns only; the others are fed "
        "unchanged. none: feed all columns unchanged.",
    )
    stream: StreamSpec | None = Field(
        None,
        description="Read rows from Parquet files whenever they are needed; {} uses the defaults. null: "
        "hold all rows in memory.",
    )

    @property
    def yields(self) -> bool:
        """Whether rows come from code (a loader or a plugin) and not from files."""
        return self.loader is not None or self.source is not None


def resolve_budget(budget: str | float, whole: float) -> float:
    """Return a budget as a number: itself, or a percentage of the whole."""
    return float(budget.rstrip("% ")) / 100 * whole if isinstance(budget, str) else float(budget)


class Strength(Section):
    """Strength of the penalty on one kind of group."""

    strength: Factor = Field(
        1.0,
        description="Factor on lambda. The weight of a group in the penalty is strength * sqrt(size of the "
        "group).",
    )


class HiddenStrength(Strength):
    """Strength of the penalty on hidden units, for all layers or layer by layer."""

    layers: dict[Text, Factor | Annotated[float, Field(ge=0, le=0)]] = Field(
        default_factory=dict,
        description="Layer name or pattern -> factor on strength; 0: the layer is not pruned. The names "
        "are those that 'glprune inspect' prints.",
    )


class PenaltySpec(Section):
    """Which groups are penalised, and how."""

    rules = recipe_rules.PENALTY_RULES

    kind: PenaltyKind = Field(
        "group_lasso",
        description="group_lasso: removes whole groups. sparse_group_lasso: also sets single weights "
        "within groups to zero. group_mcp: removes whole groups and shrinks the kept ones less (minimax "
        "concave penalty). tree_group_lasso: also removes the nested sets of features in `groups` as wholes. "
        "latent_group_lasso: keeps a union of the overlapping sets in `groups`. plugin: the penalty that "
        "`plugin` names.",
    )
    groups: dict[ColumnName, Names] = Field(
        default_factory=dict,
        description="tree_group_lasso and latent_group_lasso: name -> its features, by name or pattern, and "
        "other groups. Features remain what is kept or removed. For a tree, every two groups are disjoint "
        "or one holds the other. A feature in no group is penalised alone.",
    )
    plugin: Text | None = Field(
        None,
        description="Penalty plugin for kind: plugin (entry point of the group glprune.penalties). Its "
        "value and proximal operator are checked on random numbers before the run.",
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
        description="group_mcp: the penalty of a group is constant from gamma times the norm of its "
        "trained weights on; at the trained norm its derivative is 1 - 1/gamma of the group LASSO's. Large "
        "values approach the group LASSO; default 1.2.",
    )

    inputs: Strength | None = Field(
        default_factory=Strength, description="Penalty on input features; null: none is removed."
    )
    hidden: HiddenStrength | None = Field(None, description="Penalty on hidden units; null: none is removed.")
    weights: GroupWeights = Field(
        "adaptive",
        description="Weight of each group in the penalty: strength * sqrt(size of the group), divided by the "
        "group's importance where the stage starts, so that groups that matter little are removed first "
        "(adaptive group LASSO). size: all groups are alike. adaptive: root mean square of the group's "
        "weights. fisher, taylor: change of the training loss without the group, estimated from gradients "
        "(Fisher information, first-order Taylor expansion). ablation: the same, measured by setting one "
        "group after another to zero.",
    )

    input_strengths: Annotated[list[Factor], Field(min_length=1)] = Field(
        default_factory=lambda: [0.3, 1.0, 3.0],
        description="Factors on the strength of inputs, used when inputs and hidden units share one "
        "budget. Every stage tries all of them and continues with the best on the validation split.",
    )

    @property
    def input_strength_list(self) -> tuple[float, ...]:
        """The factors on the strength of inputs to try."""
        return tuple(self.input_strengths)

    @property
    def l1_share(self) -> float:
        """The share of the L1 term of the sparse group LASSO."""
        return 0.05 if self.l1_ratio is None else self.l1_ratio

    @property
    def mcp_threshold(self) -> float:
        """The norm from which on the group MCP is constant, in trained norms."""
        return 1.2 if self.gamma is None else self.gamma


class MaxDrop(Section):
    """How much a validation metric may worsen against the original network."""

    metric: MetricName = Field(
        description="Metric on the validation split. binary: auroc, accuracy, log_loss; multiclass: "
        "accuracy, log_loss; regression: r2, rmse, mae; distillation: r2, rmse, cosine."
    )
    amount: Annotated[float, Field(ge=0)] = Field(
        description="Largest decrease of the metric after the refit, in units of the metric; for log_loss, "
        "rmse and mae the largest increase."
    )


class TargetSpec(Section):
    """What the smallest network must satisfy: one key, or ``max_hidden`` beside one of the first three.

    ``frontier`` asks for networks of several sizes, of which one ships: that of ``max_features``, if given.

    With ``max_hidden`` beside another key, inputs are chosen first; hidden units are then chosen by separate
    paths on the refitted slim network.
    """

    rules = recipe_rules.TARGET_RULES

    max_features: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Keep at most this many features. Beside `frontier`: the size that ships.",
    )
    max_drop: MaxDrop | None = Field(
        None, description="Choose the smallest network whose validation metric worsens by at most this much."
    )
    lam: Annotated[float, Field(ge=0, le=1e9)] | None = Field(
        None, alias="lambda", description="Use exactly this penalty strength."
    )
    parameters: Budget | None = Field(
        None,
        description="Largest number of parameters, or a share of the original's such as 30%.",
    )
    macs: Budget | None = Field(
        None,
        description="Largest number of multiply-accumulates for one row, or a share of the original's such "
        "as 30%.",
    )
    latency: Budget | None = Field(
        None,
        description="Largest latency in milliseconds, or a share of the original's such as 30%; ONNX "
        "Runtime measures both networks' ONNX files on this machine.",
    )
    batch: Annotated[int, Field(ge=1, le=2**20)] = Field(
        1, description="Rows in one call when latency is measured, for `latency` and `round_to: auto`."
    )
    round_to: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        1,
        description="Round hidden widths up to multiples of this number, but not above the original width. "
        "Units that fill up a width are zero at the start of the refit, and every size counts them. auto: "
        "multiples of 8 in the stages where ONNX Runtime is at least 2 % faster with them.",
    )
    max_hidden: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Keep at most this many hidden units. Beside one of the first three keys: by separate "
        "paths, after the inputs were chosen and the network refitted.",
    )
    frontier: Sizes | Literal["auto"] | None = Field(
        None,
        description="Numbers of features: a network of every size is found, refitted and measured in one "
        "run, and `glprune select` ships another one later. auto: up to 9 sizes of equal ratios, from all "
        "features to 1. The size that ships is `max_features`, or without it the smallest that is worse than "
        "the best one on the validation split by at most one standard error of the difference.",
    )

    @property
    def counting_multiple(self) -> int:
        """The multiple of hidden widths that sizes are counted with; for auto the larger of both."""
        return AUTO_MULTIPLE if self.round_to == "auto" else self.round_to

    @property
    def hidden_alone(self) -> bool:
        """Whether ``max_hidden`` is the only target."""
        others = (self.max_features, self.max_drop, self.lam, self.parameters, self.macs, self.latency)
        return all(value is None for value in (*others, self.frontier))


class TrainSpec(Section):
    """How the network is trained with the penalty at each point of the regularisation path."""

    rules = recipe_rules.TRAIN_RULES

    optimizer: Literal["adam", "sgd"] = Field("adam", description="Proximal Adam or proximal SGD.")
    lr: Positive = Field(1e-3, description="Learning rate, as in torch.optim.")
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Momentum of sgd; default 0.9."
    )
    batch_size: BatchSize = Field(128, description="Rows in one step, or all.")
    epochs: Annotated[int, Field(ge=0)] = Field(
        5,
        description="Largest number of epochs at each lambda. An epoch has at least 20 steps: with fewer "
        "batches it goes through the rows several times.",
    )
    tolerance: Annotated[float, Field(ge=0, lt=1)] = Field(
        1e-3,
        description="Stop training at a lambda after an epoch that removed no group and lowered the "
        "objective by a smaller fraction than this; 0: never stop early.",
    )
    n_stages: Annotated[int, Field(ge=1, le=1000)] = Field(
        8,
        description="Number of paths, each of which goes part of the way to the target. Between two of "
        "them the zero groups are removed, the rest is refitted without penalty, and the group weights are "
        "computed again.",
    )
    stage_refit_epochs: Annotated[int, Field(ge=0)] = Field(
        5, description="Largest number of epochs of the refit between two stages."
    )
    n_lambdas: Annotated[int, Field(ge=2, le=10_000)] = Field(
        4, description="Number of lambdas in each stage's grid, whose last value is lambda_max."
    )
    lambda_min_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1,
        description="First lambda of the grid divided by lambda_max. Smaller lambdas remove hardly any "
        "group, and training there overfits before groups are chosen.",
    )
    full_batch_steps: Annotated[int, Field(ge=0)] = Field(
        20,
        description="Full-batch accelerated proximal gradient steps at the end of each selected point.",
    )
    max_lr_halvings: Annotated[int, Field(ge=0, le=100)] = Field(
        0,
        description="How often training at a lambda may restart with half the learning rate after a loss, "
        "gradient or weight that is not finite; the report states the number. 0: the run stops and names "
        "the batch and the layer.",
    )
    precision: Literal["float32", "bf16"] = Field(
        "float32",
        description="Precision of the forward passes in the stochastic steps of path and refit. bf16: "
        "matrices are multiplied in bfloat16. Penalty, proximal step, full-batch steps, optimality "
        "conditions and validation always use float32.",
    )
    constrain_unpenalised: bool = Field(
        True,
        description="Constrain the weights outside every group to a ball whose radius is their trained norm.",
    )


class RefitSpec(Section):
    """The fine-tuning of the slim network without penalty."""

    epochs: Annotated[int, Field(ge=0)] = Field(100, description="Largest number of epochs; 0: no refit.")
    start: Literal["best", "trained", "path"] = Field(
        "best",
        description="Weights at the start. trained: those of the trained network; path: the shrunken ones "
        "of the regularisation path; best: try both and keep the better result on the validation split.",
    )
    lr: Positive = Field(1e-3, description="Learning rate of AdamW.")
    batch_size: BatchSize = Field(128, description="Rows in one step, or all.")
    max_lr_halvings: Annotated[int, Field(ge=0, le=100)] = Field(
        0,
        description="How often a refit may restart with half the learning rate after a loss, gradient or "
        "weight that is not finite; the report states the number. 0: the run stops and names the batch and "
        "the layer.",
    )
    patience: Annotated[int, Field(ge=1)] = Field(
        30, description="Stop after this many epochs without a better validation metric."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="Weight decay of AdamW.")
    dropout: Literal["scaled", "kept", "off"] = Field(
        "scaled",
        description="The network's dropout during the refit. scaled: its rates times the square root of "
        "the share of parameters that are left; kept: unchanged; off: none.",
    )
    distill: Share | None = Field(
        None,
        description="Share of the loss that compares with the original network's predictions "
        "(distillation). Default: 0.5 if all input columns are kept and there are labels, else 0.",
    )
    temperature: Positive = Field(
        2.0, description="Temperature that softens the predictions for distillation."
    )

    def distill_share(self, *, reads_all: bool, has_labels: bool) -> float:
        """Return ``distill``, or its default.

        What the original computes from a removed column would be noise to a network without it.

        Args:
            reads_all: Whether the slim network reads all columns that the original reads.
            has_labels: Whether the data have labels.
        """
        if self.distill is not None:
            return self.distill
        return _DEFAULT_DISTILL if reads_all and has_labels else 0.0


class ExportSpec(Section):
    """The exported ONNX file and what is written beside it."""

    signature: Literal["slim", "original"] = Field(
        "slim",
        description="Columns of the ONNX file's inputs. slim: the kept ones; original: all, from which the "
        "graph selects the kept ones.",
    )
    plugins: list[Text] = Field(
        default_factory=list,
        description="Plugins that write further files after the bundle is finished, each into a folder "
        "beside it, BUNDLE.NAME (entry points of the group glprune.exporters).",
    )
    opset: Annotated[int, Field(ge=17, le=21)] = Field(18, description="ONNX operator set.")
    exporter: ExporterChoice = Field(
        "auto",
        description="dynamo or torchscript: the PyTorch exporter to use. auto: dynamo, and torchscript where "
        "dynamo fails or its file is too large. torchscript takes much less time for small networks.",
    )
    names: Literal["auto", "all", "digest"] = Field(
        "auto",
        description="Column names in the metadata of the ONNX file. all: the names; digest: their number "
        "and SHA-256 only, while the names are in the report and in input_schema.json; auto: the names, "
        "unless the file would exceed 4 bytes for each parameter plus 5 % plus 4 kB.",
    )
    quantize: Literal["int8"] | None = Field(
        None,
        description="int8: also write and measure model.int8.onnx, quantised to 8-bit integers. It is not "
        "lossless: model.onnx stays the certified file. null: no quantised file.",
    )
    keep_original: bool = Field(
        False,
        description="Also keep original.onnx, the original network, in the bundle: `glprune evaluate` then "
        "measures it too, as it needs to for distillation.",
    )
    dynamic_axes: dict[Text, dict[AxisNumber, Name]] = Field(
        default_factory=dict,
        description="Axes of any length besides the batch: input -> axis number -> label. Axes with the "
        "same label have the same length.",
    )

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """``dynamic_axes`` with the axes as numbers."""
        return {
            name: {int(a): label for a, label in axes.items()} for name, axes in self.dynamic_axes.items()
        }


class StabilitySpec(Section):
    """Stability selection: the search is repeated on random subsamples of the training rows."""

    rules = recipe_rules.STABILITY_RULES

    n_resamples: Annotated[int, Field(ge=0, le=10_000)] = Field(
        50,
        description="Number of subsamples. On each the search continues until it keeps as few features as "
        "the shipped model. Halves are drawn as complementary pairs, so their number must be even. 0: "
        "measure drop costs only.",
    )
    subsample: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5,
        description="Share of the training rows in a subsample, drawn without replacement, in each class "
        "separately.",
    )
    seeds: Literal["per_resample", "recipe"] = Field(
        "per_resample",
        description="Seed of the shuffling. per_resample: a different one for each search; recipe: the "
        "recipe's seed for all, so that only their rows differ.",
    )
    threshold: Annotated[float, Field(gt=0.5, le=1)] = Field(
        0.9, description="A feature is called stable if at least this share of the searches keep it."
    )
    drop_cost: bool = Field(
        False,
        description="Measure the cost of dropping each kept feature (leave-one-out ablation): remove it "
        "from the shipped network, refit, and report the metric on the validation and the test split.",
    )


class WorkersSpec(Section):
    """Processes for work that can be done in parallel: the paths of a stage, subsamples, drop costs."""

    engine: Literal["auto", "local", "ray"] = Field(
        "auto",
        description="local: processes on this machine. ray: workers of Ray (glprune[ray]), on the cluster "
        "that is already connected or that RAY_ADDRESS names, else on a new one on this machine. auto: ray "
        "if it is installed and starts, else local. Results do not depend on it.",
    )
    processes: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="Number of processes; default as many as there are cores for. A subsample or drop cost "
        "uses one thread, a path as many as `threads`. Results do not depend on it.",
    )


DEFAULT_THRESHOLD = 0.5
"""Probability from which a binary task decides for the positive class."""


class PolicySpec(Section):
    """Rules on features that hold whatever the penalty chooses, and attributes to report by.

    A feature is named by its ``data.feature_groups`` name or by its column.
    """

    rules = recipe_rules.POLICY_RULES

    must_drop: list[ColumnName] = Field(
        default_factory=list,
        description="Features that are removed from the trained network before anything else, with every "
        "feature derived from them.",
    )
    must_keep: list[ColumnName] = Field(
        default_factory=list, description="Features that are not penalised and always kept."
    )
    derived_from: dict[ColumnName, Names] = Field(
        default_factory=dict,
        description="Feature or column -> what it is computed from: features, columns of the file, or "
        "names in must_drop.",
    )
    protected: list[ColumnName] = Field(
        default_factory=list,
        description="Protected attributes: columns of the file, or one-hot features. Metrics and decisions "
        "are reported for each of their values. They need not be features; list them under data.exclude "
        "then.",
    )
    bins: dict[ColumnName, Annotated[list[float], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="Numeric protected attribute -> ascending edges of its segments; a value equal to an "
        "edge belongs to the upper segment. Default: one segment for each value, or quartiles of the "
        "training rows if there are more than six values.",
    )
    min_segment_rows: Annotated[int, Field(ge=1)] = Field(
        20, description="Segments with fewer test rows are listed without metrics."
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Binary tasks: the positive class is decided from this probability on; default 0.5. "
        "Multiclass tasks decide for the most probable class.",
    )
    adverse: Annotated[list[str | int], Field(min_length=1)] | None = Field(
        None,
        description="Classes that are adverse to the person; changed decisions are then counted by "
        "direction.",
    )
    reason_codes: dict[ColumnName, list[Text] | Text] = Field(
        default_factory=dict,
        description="Feature -> adverse-action reasons, as codes or texts, that cite it.",
    )
    proxies: bool = Field(
        False,
        description="Measure how well the kept inputs, the removed inputs and the score predict each "
        "protected attribute; written to proxy.json.",
    )


class ReportSpec(Section):
    """Contents of the report."""

    rules = recipe_rules.REPORT_RULES

    title: Text | None = Field(None, description="Heading; default: the recipe's file name.")
    purpose: str = Field("", description="What the model is used for, for the reader of the report.")
    baselines: bool = Field(
        False,
        description="Compare with simpler selections of the same size (random, largest weights, "
        "permutation importance); each is cut, refitted, exported to ONNX and measured.",
    )
    domain: Domain | None = Field(
        None,
        description="What the model is used for: the page then has a table of regulations and of the "
        "sections that are evidence for them. null: no table.",
    )
    jurisdiction: Jurisdiction | None = Field(
        None, description="Where: the regulations of this jurisdiction alone; null: of every one."
    )


class Recipe(Section):
    """A whole recipe."""

    rules = recipe_rules.RECIPE_RULES

    version: Literal[2] = Field(2, description="Version of the recipe format.")
    task: Literal["binary", "multiclass", "regression", "distillation"] = Field(
        description="What the network predicts. distillation: there are no labels; the slim network learns "
        "to agree with the original one."
    )
    model: ModelSpec
    data: DataSpec
    penalty: PenaltySpec = Field(default_factory=PenaltySpec)
    target: TargetSpec
    search: Literal["portfolio", "path"] = Field(
        "portfolio",
        description="How the features are found. path: by the regularisation path alone. portfolio: also in "
        "other ways; a set that is clearly better on validation rows replaces the path's (for "
        "target.max_features, where inputs and hidden units are not penalised along one path).",
    )
    train: TrainSpec = Field(default_factory=TrainSpec)
    refit: RefitSpec = Field(default_factory=RefitSpec)
    export: ExportSpec = Field(default_factory=ExportSpec)
    stability: StabilitySpec | None = Field(
        None, description="Stability selection and drop costs; null: not measured."
    )
    workers: WorkersSpec = Field(default_factory=WorkersSpec)
    policy: PolicySpec | None = Field(
        None, description="Rules on features and protected attributes; null: none."
    )
    report: ReportSpec = Field(default_factory=ReportSpec)
    allow_inexact: bool = Field(
        False,
        description="Also remove units that LayerNorm, RMSNorm, softmax or a mean combines with others. "
        "Such a removal changes the outputs; the report states by how much.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of every random choice.")
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="Threads of one tensor operation, in PyTorch and ONNX Runtime. Sums are split among "
        "them, so results depend on this number and not on the machine's cores. More threads are faster "
        "for large networks.",
    )

    _source: Path | None = PrivateAttr(None)
    _sha256: str | None = PrivateAttr(None)
    _lines: Lines = PrivateAttr(default_factory=dict)
    _allowed: tuple[str, ...] | None = PrivateAttr(None)
    _places: Mapping[str, Path] = PrivateAttr(default_factory=dict)

    @property
    def source(self) -> Path | None:
        """The recipe's file; None for a recipe built in Python."""
        return self._source

    @property
    def folder(self) -> Path:
        """The folder that paths are relative to."""
        return self._source.parent if self._source else Path()

    @property
    def sha256(self) -> str | None:
        """Digest of the file."""
        return self._sha256

    @property
    def allowed(self) -> tuple[str, ...] | None:
        """The packages and files that its factory, loader and plugins may be imported from; None: any."""
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
        """Return a copy whose code may only be imported from some packages and files; None: no limit."""
        if packages is None:
            return self
        limited = self.model_copy()
        limited._allowed = (packages,) if isinstance(packages, str) else tuple(packages)  # noqa: SLF001  a Recipe
        return limited

    def set_source(self, source: Path, sha256: str, lines: Lines) -> None:
        """Record the file that the recipe was read from: its path, its digest and the line of each key."""
        self._source, self._sha256, self._lines = source, sha256, lines

    def with_files(self, places: Mapping[str, Path]) -> Recipe:
        """Return a copy whose files are elsewhere: path in the recipe -> where the file is."""
        moved = self.model_copy()
        moved._places = dict(places)  # noqa: SLF001  a Recipe
        return moved

    def path(self, text: str) -> Path:
        """Resolve a path of the recipe."""
        return self._places.get(text, self.folder / text)

    def where(self, *keys: str) -> str:
        """Return the place of a key for an error message: ``recipe.yaml:12: data.target``."""
        dotted = ".".join(keys)
        line = nearest_line(self._lines, keys)
        return f"{self._source}:{line}: {dotted}" if self._source and line else dotted

    def to_yaml(self) -> str:
        """Return the recipe as YAML with every default written out; it loads back to an equal recipe."""
        tree = self.model_dump(mode="json", by_alias=True)
        # null is a choice for these keys, and an argument may be null
        return dump(tree, null_keys=("inputs", "hidden", "axis"), verbatim=("arguments",))
