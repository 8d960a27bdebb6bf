"""The records of ``report.json``, as strict pydantic models.

The records hold measured values only; ``glprune.report`` makes sentences and pictures from them.
Times and latencies are the only values that differ between two runs with the same recipe, seed and
machine; they are under ``timing``, ``latency``, ``widths`` and ``quantized``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from glprune.schema.recipe import Domain, GroupWeights, Jurisdiction, PenaltyKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from glprune.schema.recipe import PolicySpec

GroupKind = Literal["input", "hidden"]
DType = Literal["float32", "int64", "bool"]
InstructionSet = Literal[
    "SSSE3",
    "AVX2",
    "AVX-512 BW",
    "AVX-VNNI",
    "AVX-512 VNNI",
    "AMX-INT8",
    "NEON",
    "NEON dot product",
    "NEON I8MM",
]
ProxySource = Literal["kept inputs", "removed inputs", "score"]


MISSING = "missing"
"""The segment of rows without a value."""
VALUES, EDGES, QUARTILES = "values", "edges of the recipe", "quartiles of the training rows"
"""What divides rows into segments."""


class Record(BaseModel):
    """A frozen record that refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Digests(Record):
    """SHA-256 digests of the inputs and outputs of the run, as ``sha256:`` and 64 hex digits."""

    recipe: str = Field(description="digest of the recipe file as the user wrote it")
    recipe_resolved: str = Field(
        description="digest of `recipe.resolved.yaml` in the bundle: the recipe with all defaults",
    )
    model: str = Field(description="digest of the file with the trained weights")
    data: dict[str, str] = Field(description="split or file name -> digest of the data")
    columns: str | None = Field(
        None,
        description="digest of `data.columns` as JSON in UTF-8 without spaces; null in reports of 0.2.0",
    )
    outputs: dict[str, str] = Field(
        description="bundle file name -> digest, of the files written before the report",
    )


class Run(Record):
    """The environment of the run."""

    seed: int = Field(description="random seed of the run")
    threads: int = Field(description="threads that PyTorch uses for one operation; results depend on it")
    platform: str = Field(description="operating system and processor architecture")
    cpu: str | None = Field(
        None,
        description="instruction set that PyTorch's kernels use, such as AVX2; results depend on it",
    )
    versions: dict[str, str] = Field(description="package -> version, of glprune and the libraries it ran on")
    plugins: dict[str, str] = Field(
        default_factory=dict,
        description="group:name of each plugin used -> its package and version",
    )


class LrHalvings(Record):
    """How often the step size was halved because a loss, a gradient or a weight was not finite."""

    path: int = Field(description="at the points of `path`")
    refit: int = Field(description="in the refits of `stages`")


class Timing(Record):
    """Times, which differ from run to run."""

    generated_at: str = Field(description="time of writing, RFC 3339, UTC")
    seconds: dict[str, float] = Field(description="step of the run -> wall time in seconds")


class SplitFacts(Record):
    """One data split as it was used."""

    rows: int = Field(description="number of rows")
    target: dict[str, float] = Field(
        description="class label -> share of rows, or mean/std of a regression target; empty for distillation"
    )


class DataFacts(Record):
    """The data as read."""

    source: str = Field(description="name of the data file, or of the loader function")
    splits: dict[str, SplitFacts] = Field(description="split name -> its rows and target")
    classes: list[str] | None = Field(
        description="class labels in the order of the network's outputs; null where there are none",
    )
    standardize: Literal["none", "train"] | list[str] = Field(
        description=(
            "`train`: inputs are standardised with the mean and standard deviation of the training rows, "
            "inside the shipped file; a list, as the recipe has it: these columns only; `none`: they are not"
        ),
    )
    notes: list[str] = Field(description="notes of the data reader, such as rows or columns it left out")
    columns: dict[str, list[str]] | None = Field(
        None,
        description=(
            "input of the trained network -> names of its columns, in the order in which it takes them; null "
            "in reports of 0.2.0"
        ),
    )
    outside: list[str] = Field(
        default_factory=list, description="columns of the data files that no input takes"
    )


class Feature(Record):
    """One input feature: a column, or several columns that are kept or removed together."""

    name: str = Field(description="name of the feature")
    columns: list[str] = Field(description="names of its columns in the data")
    status: Literal["kept", "removed"] = Field(
        description="whether the shipped model reads the feature (`kept`) or not (`removed`)",
    )
    group_size: int = Field(
        description="number of weights in the feature's group: those through which the first layer reads it",
    )
    penalty_weight: float = Field(
        description=(
            "factor on lambda for this group, as penalty.weights defines it; in the last stage that had "
            "the feature"
        ),
    )
    norm_original: float = Field(description="L2 norm of the group in the trained network")
    norm_selected: float = Field(
        description="L2 norm at the chosen point of the last path over inputs; 0 if removed",
    )
    norm_final: float | None = Field(description="L2 norm in the shipped network; null if removed")
    lambda_exit: float | None = Field(
        description=(
            "first lambda, in the stage that removed the feature, at which its group was exactly zero"
        ),
    )
    stage_exit: int | None = Field(description="number of the stage that removed it")
    input: str = Field(description="name of the network input that holds its columns")
    input_columns: list[int] | None = Field(
        description="positions of its columns in that input of the shipped file; null if removed",
    )
    kept_in: int | None = Field(
        None,
        description=(
            "number of `stability.resamples` that kept the feature; null where stability was not measured"
            " or the feature cannot be removed"
        ),
    )
    kept_share: float | None = Field(None, description="the same as a share of the resamples, 0 to 1")
    reason: str | None = Field(
        None,
        description=(
            "reason for the status: `penalty`, `must_drop`, or `derived_from` and the feature named in "
            "must_drop; `must_keep` where the policy kept it; null where the penalty kept it"
        ),
    )


class HiddenLayer(Record):
    """The units of one layer, or of several layers whose units can only be removed together."""

    name: str = Field(description="name of the layer in the network")
    before: int = Field(description="hidden units in the original network")
    after: int = Field(description="hidden units in the shipped network")
    refused: str | None = Field(description="operation that forbids the removal of these units, or null")


class FeatureGroup(Record):
    """A set of features that the penalty removes as one, by ``penalty.groups``."""

    name: str = Field(description="name of the group in the recipe")
    features: list[str] = Field(description="its features, those of groups inside it among them")
    kept: list[str] = Field(description="those of them that the shipped model reads")


class PenaltyFacts(Record):
    """The penalty of the path, with its defaults."""

    kind: PenaltyKind = Field(description="which penalty was used")
    groups: list[FeatureGroup] = Field(
        default_factory=list,
        description="sets of features of the tree and the latent group LASSO; empty for other penalties",
    )
    plugin: str | None = Field(None, description="name of the plugin; null for glprune's own penalties")
    weights: GroupWeights = Field(
        description=(
            "weights of the groups: `size`: the square root of the size of the group; the others: that "
            "divided by the group's importance where the stage starts, which is the root mean square of its "
            "weights (`adaptive`) or how the training loss changes without it, estimated from its Fisher "
            "information (`fisher`) or to first order (`taylor`), or measured (`ablation`)"
        ),
    )
    l1_ratio: float | None = Field(
        description=(
            "share of the L1 term on single weights in the sparse group LASSO; null for other penalties"
        ),
    )
    gamma: float | None = Field(
        description=(
            "knot of the group MCP, in multiples of the norm of the trained group; null for other penalties"
        ),
    )


class PathPoint(Record):
    """One lambda of the regularisation path, measured on the penalised network."""

    stage: int = Field(description="number of its stage, from 1")
    lam: float = Field(description="lambda, the strength of the penalty")
    objective: float = Field(description="training loss plus penalty")
    loss: float = Field(description="training loss, without the penalty")
    penalty: float = Field(description="value of the penalty, lambda included")
    kkt_zero: float = Field(
        description="largest relative violation of the optimality conditions over zero groups"
    )
    kkt_active: float = Field(description="the same over non-zero groups")
    features: int = Field(description="input features with a non-zero group")
    columns: int = Field(description="input columns with a non-zero weight")
    hidden: int = Field(description="hidden units with a non-zero group")
    metric: float = Field(description="selection metric on the validation split, before any refit")
    refit_metric: float | None = Field(description="the same after a refit, where one was made")
    norms: list[float] = Field(
        description=(
            "group norm of every feature, in the order of `features`, 0 once removed; with more than "
            "1,000 features only for chosen points, otherwise empty"
        ),
    )
    selected: bool = Field(description="whether its stage chose this point")


class SearchStage(Record):
    """One stage of the search: a regularisation path and the network chosen on it.

    The next stage starts from that network: its zero groups are removed, the rest is refitted, and
    the weights of the groups are computed again.
    """

    number: int = Field(description="number of the stage, from 1")
    penalised: list[GroupKind] = Field(description="kinds of groups that the penalty acted on")
    rule: str = Field(description="rule by which the point was chosen")
    input_strength: float = Field(description="factor on lambda for input groups")
    lam: float = Field(description="lambda of the chosen point")
    features: int = Field(description="input features left")
    hidden: int = Field(description="hidden units left, counting layers whose units can be removed")
    metric: float = Field(description="selection metric on the validation split after the stage's refit")


class ValidationFigures(Record):
    """Figures of a set of features on validation rows, after a brief refit."""

    metric: float = Field(description="the selection metric; mean over the folds")
    standard_error: float = Field(description="its standard error, over the rows")
    loss: float = Field(description="mean loss on the same rows")
    gain: float = Field(
        description="how much better the metric is than that of the regularisation path's set; below 0 where "
        "it is worse"
    )
    gain_standard_error: float = Field(description="standard error of the gain, over paired rows")


class CandidateFacts(Record):
    """A set of features of the target's size."""

    found_by: str = Field(description="how the set was found")
    features: list[str] = Field(description="names of its features")
    valid: ValidationFigures = Field(description="figures on the validation split")
    cross_validation: ValidationFigures | None = Field(
        description="figures on all folds; null where the set was not cross-validated"
    )
    chosen: bool = Field(description="whether the shipped model keeps this set")


class Comparison(Record):
    """The sets of features that were compared, and how."""

    folds: int = Field(description="number of folds of training and validation rows; 1: no cross-validation")
    repeats: int = Field(description="how often the rows were divided into folds")
    rows: int = Field(description="rows of the validation split")
    fold_rows: int = Field(description="rows of all folds together; 0 where no set was cross-validated")
    rule: str = Field(description="rule by which one was chosen")
    lead: float | None = Field(
        description="how much better the chosen set is than the next best; null where there was one set"
    )
    lead_standard_error: float | None = Field(description="standard error of the lead, over paired rows")
    candidates: list[CandidateFacts] = Field(description="the sets, that of the regularisation path first")


class Selection(Record):
    """How the shipped network was chosen."""

    rule: str = Field(description="the target of the recipe, in words")
    lam: float = Field(description="lambda of the point chosen in the last stage that penalised inputs")
    metric: str = Field(description="name of the selection metric")
    split: Literal["valid"] = Field("valid", description="split on which points were compared")
    reference: float = Field(description="the metric of the original network on the same split")
    comparison: Comparison | None = Field(
        None, description="sets of features that were compared; null where the path alone was used"
    )


class Cut(Record):
    """One certified cut, with the change of the outputs it made."""

    name: str = Field(description="name of the input or the hidden layer")
    kind: Literal["input", "hidden"] = Field(description="whether input columns or hidden units were removed")
    units: int = Field(description="columns or hidden units removed by this cut")
    difference: float = Field(
        description="largest change of an output, max |a - b| / max(1, max |a|), over all compared rows",
    )
    removal: Literal["cut", "constant"] = Field(
        "cut",
        description=(
            "`cut`: weights were sliced; `constant`: the file has no such input and feeds the network a "
            "constant instead, because the code of the network requires all columns"
        ),
    )
    inexact: str | None = Field(
        None,
        description=(
            "operation that mixes the units, where the recipe allows an inexact cut; null for exact cuts"
        ),
    )


class Skipped(Record):
    """Units that stayed, and the operation that forbids removing them."""

    name: str = Field(description="name of the input or the hidden layer")
    units: int = Field(description="number of units that stayed")
    reason: str = Field(description="operation that forbids their removal")


class Removal(Record):
    """Evidence that removal did not change the outputs."""

    tolerance: float = Field(description="largest difference a cut may make, in the measure of `difference`")
    rows: int = Field(description="rows on which outputs were compared: real, synthetic and random ones")
    difference: float = Field(
        description=(
            "difference between the network with zeroed groups and the slim network, measured as in `cuts`"
        ),
    )
    cuts: list[Cut] = Field(description="every cut, in the order it was made")
    refused: list[Skipped] = Field(description="units that could not be removed")


class Interval(Record):
    """A 95 % confidence interval."""

    low: float = Field(description="lower end")
    high: float = Field(description="upper end")


class PairedIntervals(Record):
    """Intervals of one metric of several networks, and of their differences, on the same rows."""

    method: Literal["bootstrap", "delong", "influence"] = Field(
        description=(
            "`bootstrap`: bias-corrected percentiles of the metric on rows drawn with replacement, the same "
            "rows for every network; `delong`: DeLong's standard error of AUROC; `influence`: a standard "
            "error from the influence of every row, where a bootstrap would take too long"
        ),
    )
    resamples: int | None = Field(description="number of resamples; null where none were drawn")
    seed: int | None = Field(description="random seed of the resamples; null where none were drawn")
    values: dict[str, Interval] = Field(
        description=(
            "network, by the name of its value beside this record -> interval of that value; of a "
            "calibration error, which is too high on few rows, one that allows for the largest such bias"
        ),
    )
    differences: dict[str, Interval] = Field(
        description="network -> interval of its value minus that of the one network that is not listed here",
    )


class Metric(Record):
    """One metric on the test split; every value was measured with ONNX Runtime."""

    name: str = Field(description="name of the metric")
    higher_is_better: bool = Field(description="whether a higher value is better")
    rows: int = Field(description="rows of the test split")
    original: float = Field(description="value of the original network")
    zeroed: float = Field(description="value with all removed groups zero, before the refit")
    final: float = Field(description="value of the shipped model.onnx")
    intervals: PairedIntervals | None = Field(
        None,
        description="intervals of `original`, `zeroed` and `final`, and of their change against `original`; "
        "null with a single test row and in reports of glprune 0.2.0",
    )


class Size(Record):
    """Counts before and after."""

    parameters_before: int = Field(
        description=(
            "numbers in the weights of the original network: parameters and constant buffers, without "
            "integers, statistics of BatchNorm and standardisation"
        )
    )
    parameters_after: int = Field(description="parameters of the shipped network")
    macs_before: int = Field(description="multiply-accumulates of the original network for one row")
    macs_after: int = Field(description="the same for the shipped network")
    macs_of: Literal["onnx", "pytorch"] = Field(
        "pytorch",
        description=(
            "`onnx`: counted from the ONNX files, so that an auditor can count again; `pytorch`: from the "
            "networks, where a file has products in a loop or a branch"
        ),
    )
    onnx_bytes_before: int = Field(description="size of the original network as an ONNX file, in bytes")
    onnx_bytes_after: int = Field(description="size of the shipped ONNX file, in bytes")


class Latency(Record):
    """Latency in ONNX Runtime; original and shipped file ran alternately in one process."""

    batch: int = Field(description="rows in one batch")
    runs: int = Field(description="timed runs of each file")
    threads: int = Field(description="threads ONNX Runtime used")
    original_ms: float = Field(
        description="median time for one batch with the original network, in milliseconds",
    )
    original_p95_ms: float = Field(description="95th percentile of the same, in milliseconds")
    slim_ms: float = Field(description="median time for one batch with the shipped file, in milliseconds")
    slim_p95_ms: float = Field(description="95th percentile of the same, in milliseconds")
    speedup: float = Field(description="median of the pairwise ratios original / slim")


class WidthTiming(Record):
    """Timing of exact hidden widths against widths rounded up to multiples, before the last refit."""

    round_to: int = Field(
        description=(
            "multiple to which the shipped widths were rounded up: 1 (not rounded), or `tried` where that"
            " was faster"
        ),
    )
    tried: int = Field(description="multiple that was tried")
    batch: int = Field(description="rows in one batch")
    runs: int = Field(description="timed runs of each network")
    exact_ms: float = Field(
        description="median time for one batch with exact widths, in milliseconds, through ONNX Runtime",
    )
    rounded_ms: float = Field(
        description=(
            "median time for one batch with rounded widths, in milliseconds; the two networks ran alternately"
        ),
    )
    speedup: float = Field(description="median of the pairwise ratios exact / rounded")


class Input(Record):
    """One input of the shipped file."""

    name: str = Field(description="name of the input in the ONNX file")
    dtype: DType = Field(description="data type of its values")
    axis: int | None = Field(
        description="axis that holds the columns; null for an input without features, which is never cut",
    )
    columns: list[str] = Field(
        description="names of the columns along that axis, in order; empty where they have no names",
    )


class Output(Record):
    """One output of the shipped file."""

    name: str = Field(description="name of the output in the ONNX file")
    meaning: str = Field(description="what its values are, such as the probability of a class")
    scale: float | None = Field(
        None,
        description="what its values are divided by before the metrics of distillation; 0: they are left "
        "out; null for other tasks and in reports of glprune 0.2.0",
    )


class PredictionMeaning(NamedTuple):
    """What the prediction is called.

    Attributes:
        of_one_class: Where a binary task has one output; None for other tasks.
        of_all: Otherwise.
    """

    of_one_class: str | None
    of_all: str


def prediction_meaning(task: str, output: str, classes: Sequence[str]) -> PredictionMeaning:
    """Describe the prediction of a task in words.

    Args:
        task: The kind of task.
        output: ``logits`` or ``probabilities``; what the network returns for classes.
        classes: The labels in the order of the outputs; empty without classes.
    """
    if task == "distillation":
        return PredictionMeaning(None, "what the original network returns, approximately")
    if task == "regression":
        return PredictionMeaning(None, "predicted value")
    single = {"logits": "logit", "probabilities": "probability"}[output]
    one = f"{single} of class {classes[1]!r}" if task == "binary" and len(classes) > 1 else None
    return PredictionMeaning(one, f"{output} of the classes in order: {', '.join(classes)}")


class Agreement(Record):
    """One output of the shipped file compared with the original network's, on the test split."""

    name: str = Field(description="name of the output")
    r2: float | None = Field(
        description="share of the original's variance explained; null where the original never varies"
    )
    max_change: float = Field(description="largest absolute change of an output value")
    trained_for: bool = Field(description="whether the training loss used this output")


class Export(Record):
    """The shipped file."""

    file: str = Field(description="name of the ONNX file in the bundle")
    signature: Literal["slim", "original"] = Field(
        description=(
            "`slim`: removed columns are no inputs of the file; `original`: the file takes all columns "
            "and ignores the removed ones"
        ),
    )
    exporter: str = Field(description="PyTorch exporter that wrote the file")
    names: Literal["all", "digest"] = Field(
        "all",
        description=(
            "how the metadata of the file gives the names of its columns: `all`, or a `digest`: their "
            "number and the SHA-256 of the list"
        ),
    )
    opset: int = Field(description="version of the ONNX operator set")
    inputs: list[Input] = Field(description="in the file's order")
    outputs: list[Output] = Field(description="in the file's order")
    checker: Literal["passed"] = Field(description="result of `onnx.checker`")
    rows: int = Field(description="rows on which ONNX Runtime and PyTorch were compared")
    difference: float = Field(
        description=(
            "largest difference between ONNX Runtime and PyTorch on the test split, "
            "max |a - b| / max(1, max |a|) over outputs"
        ),
    )


class QuantizedMetric(Record):
    """One metric on the test split, of both files, measured with ONNX Runtime."""

    name: str = Field(description="name of the metric")
    higher_is_better: bool = Field(description="whether a higher value is better")
    float32: float = Field(description="value of model.onnx")
    int8: float = Field(description="value of the 8-bit file")
    intervals: PairedIntervals | None = Field(
        None,
        description="intervals of `float32` and `int8`, and of their difference; null as in `performance`",
    )


class QuantizedLatency(Record):
    """Latency of model.onnx and the 8-bit file, which ran alternately."""

    batch: int = Field(description="rows in one batch")
    runs: int = Field(description="timed runs of each file")
    float32_ms: float = Field(description="median time for one batch with model.onnx, in milliseconds")
    int8_ms: float = Field(description="median time for one batch with the 8-bit file, in milliseconds")
    speedup: float = Field(description="median of the pairwise ratios float32 / int8")


class Quantized(Record):
    """The 8-bit file beside the shipped one; its outputs differ, so it is not certified."""

    file: str = Field(description="name of the 8-bit ONNX file in the bundle")
    method: Literal["static", "dynamic"] = Field(
        description=(
            "`static`: ranges of activations were measured on training rows; `dynamic`: they are computed"
            " for each batch"
        ),
    )
    products: int = Field(description="matrix products and convolutions computed with 8-bit integers")
    products_of: int = Field(description="all matrix products and convolutions of the file")
    largest_pair: int | None = Field(
        None,
        description=(
            "largest sum of two 8-bit products of one output, from the weights, for the worst activations; up"
            " to 32767 no kernel saturates, so that processors agree; null in reports of 0.2.0"
        ),
    )
    instruction_sets: list[InstructionSet] = Field(
        default_factory=list,
        description="instruction sets for 8-bit products of the processor on which the file was measured",
    )
    calibration_rows: int = Field(description="training rows on which ranges were measured; 0 for dynamic")
    bytes: int = Field(description="size of the 8-bit file, in bytes")
    rows: int = Field(description="rows of the test split")
    metrics: list[QuantizedMetric] = Field(
        description="every metric of the task on the test split, of both files",
    )
    same_decisions: float | None = Field(
        description=(
            "share of test rows with the same decision from both files, 0 to 1; null where there are no "
            "classes"
        ),
    )
    difference: float = Field(
        description=(
            "largest change of an output against model.onnx on the test split, relative to the largest output"
        ),
    )
    golden_difference: float = Field(
        description="the same on the rows of `golden.safetensors`, where an auditor can repeat it",
    )
    latency: list[QuantizedLatency] = Field(description="latency at every measured batch size")


class Refit(Record):
    """The training of the slim network without penalty."""

    epochs: int = Field(description="epochs trained")
    best_epoch: int = Field(
        description=(
            "epoch whose weights were kept, by the selection metric on the validation split; 0: the "
            "weights before the refit"
        ),
    )
    distill: float = Field(
        description="share of the loss that followed the original network's outputs, 0 to 1",
    )
    metric: float = Field(description="selection metric on the validation split after the refit")


class Spread(Record):
    """A metric over the runs of a baseline."""

    name: str = Field(description="name of the metric")
    mean: float = Field(description="the value itself where there is one selection")
    std: float | None = Field(description="sample standard deviation; null where there is one selection")


class BaselineRun(Record):
    """One selection: removed from the trained network, refitted and exported like the shipped one."""

    kept: list[str] = Field(description="names of the kept features, in the order of `features`")
    common: int = Field(description="how many of them the shipped model keeps too")
    hidden: int = Field(description="hidden units left")
    common_hidden: int = Field(description="how many of them the shipped model keeps too")
    valid: float = Field(description="selection metric on the validation split, after the refit")
    test: dict[str, float] = Field(description="metric name -> value on the test split, through ONNX Runtime")
    differences: dict[str, Interval] = Field(
        default_factory=dict,
        description="metric name -> interval of the shipped file's value minus this one, as in `performance`",
    )


class Baseline(Record):
    """A method of selection and the results of its runs."""

    name: Literal["random", "magnitude", "permutation"] = Field(
        description="method that selected the features and hidden units",
    )
    valid: Spread = Field(description="selection metric on the validation split")
    test: list[Spread] = Field(description="every metric on the test split, through ONNX Runtime")
    runs: list[BaselineRun] = Field(description="one run; for random selection one for each draw")


class Baselines(Record):
    """Simpler selections that keep as many features of each input and units of each layer as shipped."""

    features: int = Field(description="features the shipped model keeps")
    hidden: int = Field(description="hidden units the shipped model keeps")
    valid: float = Field(description="the shipped network's selection metric on the validation split")
    rows: int = Field(description="rows of the test split")
    repeats: int = Field(description="permutations of the validation rows for each feature's importance")
    results: list[Baseline] = Field(description="one record for each method; empty where nothing was removed")
    notes: list[str] = Field(description="comparisons that were not possible or not on equal terms, and why")


class FrontierPoint(Record):
    """A network of one size, refitted, exported and measured like the shipped one."""

    size: int = Field(description="number of features asked for")
    features: list[str] = Field(description="names of the features it keeps")
    found_by: str = Field(description="how its features were found: the chosen one of the compared sets")
    valid: float = Field(description="selection metric on the validation split after the refit")
    standard_error: float = Field(description="standard error of that, over the rows")
    gain: float = Field(
        description="how much better than the best point on the validation rows; 0 for that, else below"
    )
    gain_standard_error: float = Field(description="standard error of the gain, over paired rows")
    test: float | None = Field(
        description="selection metric on the test split, of its exported ONNX file through ONNX Runtime; "
        "null where it could not be measured",
    )
    test_interval: Interval | None = Field(
        description="95 % interval of that over the test rows, computed as in `performance`",
    )
    reason: str | None = Field(description="why the test metric could not be measured, or null")
    parameters: int = Field(description="parameters of the network")
    macs: int = Field(description="multiply-accumulates for one row")
    shipped: bool = Field(description="whether this is the shipped network")


class Frontier(Record):
    """Networks of several sizes from one search, of which one ships."""

    metric: str = Field(description="name of the selection metric")
    higher_is_better: bool = Field(description="whether a higher value is better")
    valid_rows: int = Field(description="rows of the validation split")
    test_rows: int = Field(description="rows of the test split")
    rule: str = Field(description="rule by which the shipped size was chosen")
    points: list[FrontierPoint] = Field(description="one record for each size, the largest first")


class Resample(Record):
    """The search on one random part of the training rows, from the same trained network."""

    seed: int = Field(description="random seed of the resample")
    rows: int = Field(description="training rows in the resample")
    stages: int = Field(description="stages of the search")
    lam: float = Field(description="lambda chosen in the last stage")
    metric: float = Field(
        description="selection metric on the validation split, before any refit after the last stage",
    )
    kept: str = Field(
        pattern="^[01]+$", description="one digit for each of `features`, in order: 1 kept, 0 removed"
    )


class Stability(Record):
    """Stability of the selected features; every figure covers the features that can be removed."""

    subsample: float = Field(description="share of the training rows in a resample")
    pairs: bool = Field(description="whether resamples come in complementary pairs of halves")
    seeds: Literal["per_resample", "recipe"] = Field(
        description=(
            "`per_resample`: each resample has a random seed of its own; `recipe`: all use the recipe's seed"
        ),
    )
    limit: int = Field(
        description="largest number of features a search was to keep: as many as the shipped model",
    )
    removable: str = Field(
        pattern="^[01]+$",
        description=(
            "one digit for each of `features`, in order: 1 if it can be removed and no policy rule "
            "decides it, else 0"
        ),
    )
    threshold: float = Field(description="share of resamples from which a feature counts as stable, 0 to 1")
    stable: int = Field(description="number of features kept in at least that share")
    mean_kept: float = Field(description="number of features kept, mean over the resamples")
    jaccard: float = Field(
        description=(
            "Jaccard index, mean over all pairs of resamples: features kept in both, divided by features "
            "kept in either"
        ),
    )
    nogueira: float | None = Field(
        description=(
            "Nogueira's stability index: 1 for the same features every time, 0 for a random choice; null "
            "where each resample keeps all features or none"
        ),
    )
    nogueira_interval: Interval | None = Field(
        description=(
            "95 % confidence interval of the index, assuming independent resamples; null with fewer than "
            "10 resamples"
        ),
    )
    false_bound: float | None = Field(
        description=(
            "bound by Meinshausen and Buehlmann on the expected number of stable but irrelevant features,"
            " mean_kept^2 / ((2 threshold - 1) features). It assumes that irrelevant features are equally"
            " likely to be kept, that they are kept no more often than by chance, and that each half is "
            "used by one resample only. Null where the bound is not below `stable`, or the resamples are "
            "not halves"
        ),
    )
    resamples: list[Resample] = Field(description="one record for each successful search")
    failures: list[str] = Field(
        description="error message of each search that found no network; these resamples are not counted",
    )


class DropCost(Record):
    """The shipped network without one feature, refitted."""

    feature: str = Field(description="name of the feature")
    valid: float | None = Field(
        description="metric on the validation split; null where the feature cannot be dropped",
    )
    test: float | None = Field(
        description="metric on the test split; null where the feature cannot be dropped",
    )
    reason: str | None = Field(description="why the feature cannot be dropped, or null")


class DropCosts(Record):
    """Cost of dropping each kept feature (leave-one-out ablation), measured with ONNX Runtime."""

    metric: str = Field(description="name of the metric")
    higher_is_better: bool = Field(description="whether a higher value is better")
    valid_rows: int = Field(description="rows of the validation split")
    test_rows: int = Field(description="rows of the test split")
    valid: float = Field(description="the shipped file's metric on the validation split")
    test: float = Field(description="the shipped file's metric on the test split")
    refitted_valid: float = Field(
        description=(
            "metric on the validation split of the shipped network, refitted once more without dropping a"
            " feature"
        ),
    )
    refitted_test: float = Field(description="the same on the test split")
    features: list[DropCost] = Field(
        description="one record for each kept feature, in the order of `features`",
    )


class Policy(Record):
    """The producer's rules on features; ``glprune verify`` checks them."""

    must_drop: list[str] = Field(
        [],
        description="features or columns that the model must not read, nor anything derived from them",
    )
    must_keep: list[str] = Field([], description="features or columns that the model must keep")
    protected: list[str] = Field([], description="protected attributes: reported where the model reads them")
    derived_from: dict[str, list[str]] = Field(
        {},
        description="column or feature -> the features it is derived from",
    )

    @classmethod
    def of(cls, spec: PolicySpec) -> Policy:
        """Return the rules of a recipe as written."""
        parents = spec.derived_from.items()
        return cls(
            must_drop=spec.must_drop,
            must_keep=spec.must_keep,
            protected=spec.protected,
            derived_from={name: [names] if isinstance(names, str) else names for name, names in parents},
        )


class DecisionChange(Record):
    """Decisions of the shipped file compared with the original's, on the same rows."""

    rows: int = Field(description="number of rows compared")
    flipped: int = Field(description="rows with another decision")
    to_adverse: int | None = Field(
        description=(
            "rows that changed from a class that is not adverse to an adverse one; null where no class is"
            " called adverse"
        ),
    )
    to_favourable: int | None = Field(
        description="rows that changed the other way; null where no class is called adverse",
    )
    adverse_original: int | None = Field(
        description="rows with an adverse decision of the original; null where no class is called adverse",
    )
    adverse_final: int | None = Field(
        description=(
            "rows with an adverse decision of the shipped file; null where no class is called adverse"
        ),
    )


class SegmentMetric(Record):
    """One metric on the rows of a segment, through ONNX Runtime."""

    name: str = Field(description="name of the metric")
    original: float | None = Field(
        description=(
            "value of the original; null where the metric is not defined on these rows, such as AUROC of "
            "one class"
        ),
    )
    final: float | None = Field(description="value of the shipped file; null as for `original`")
    difference: float | None = Field(description="`final` minus `original`")
    intervals: PairedIntervals | None = Field(
        None,
        description="intervals of `original` and `final`, and of their difference; null where these are",
    )


class Segment(Record):
    """The test rows of one value, or range of values, of an attribute."""

    value: str = Field(description="value, or range of values, of the attribute")
    rows: int = Field(description="test rows in the segment")
    suppressed: bool = Field(
        description="whether the segment has fewer than `min_rows` rows, so that no figures are given",
    )
    metrics: list[SegmentMetric] = Field(
        description="every metric of the task on these rows; empty if suppressed",
    )
    decisions: DecisionChange | None = Field(
        description="changed decisions on these rows; null if suppressed or the task has no decisions",
    )


class ProtectedAttribute(Record):
    """A protected attribute and its segments."""

    name: str = Field(description="name of the attribute")
    status: Literal["kept", "removed", "outside"] = Field(
        description="`kept` or `removed` as a feature of the network; `outside`: it was never an input",
    )
    by: str = Field(description="how the rows were divided into segments")
    edges: list[float] | None = Field(
        None,
        description="ascending edges of the ranges; null where each value is a segment, and in reports of "
        "glprune 0.2.0",
    )
    segments: list[Segment] = Field(description="one record for each segment")


class Segments(Record):
    """Decisions and metrics of the original and the shipped file on the test split, by segment."""

    min_rows: int = Field(description="smallest segment for which figures are given, in rows")
    threshold: float | None = Field(
        description=(
            "decision threshold on the probability of the positive class; null: the task is not binary"
        ),
    )
    adverse: list[str] | None = Field(description="classes the recipe calls adverse")
    decisions: DecisionChange | None = Field(
        description="changed decisions over all test rows; null where the task has no decisions",
    )
    attributes: list[ProtectedAttribute] = Field(description="one record for each protected attribute")


class ReasonCode(Record):
    """A reason code for adverse decisions, with the features it cites."""

    code: str = Field(description="the reason code")
    removed: list[str] = Field(description="cited features that were removed")
    kept: list[str] = Field(description="cited features that were kept")


class ReasonCodes(Record):
    """The recipe's reason codes, by the fate of their features."""

    retired: list[ReasonCode] = Field(
        description="codes whose features are all removed: they can no longer occur",
    )
    to_review: list[ReasonCode] = Field(description="codes some of whose features are removed")
    unchanged: list[ReasonCode] = Field(description="codes whose features are all kept")


class Proxies(Record):
    """Whether inputs or score predict protected attributes; the figures are in ``proxy.json``."""

    performed: bool = Field(description="whether the analysis was made")
    reason: str | None = Field(description="why the analysis was not made, or null")
    file: str | None = Field(description="name of the file with the figures; null where it was not made")
    digest: str | None = Field(
        description=(
            "SHA-256 digest of that file, which may be withheld; null where the analysis was not made"
        ),
    )


class Prediction(Record):
    """How well an attribute is predicted from one source."""

    source: ProxySource = Field(description="what the attribute was predicted from")
    columns: int = Field(description="columns used for the prediction")
    rows: int = Field(description="test rows used")
    left_out: list[str] = Field(description="classes left out because they have too few rows")
    value: float | None = Field(
        description="measure of the prediction, mean over the folds; null where it could not be measured",
    )
    std: float | None = Field(description="sample standard deviation over the folds")
    shuffled: float | None = Field(
        description="the same with the values of the attribute permuted: what no relation gives",
    )
    reason: str | None = Field(description="why it could not be measured, or null")


class ProxyAttribute(Record):
    """One protected attribute."""

    name: str = Field(description="name of the attribute")
    status: Literal["kept", "removed", "outside"] = Field(
        description="`kept` or `removed` as a feature of the network; `outside`: it was never an input",
    )
    measure: Literal["auc", "r2"] = Field(
        description=(
            "`auc`: area under the ROC curve, 0.5 for a random guess, mean over each class against the "
            "rest; `r2`: share of the variance explained, 0 for the mean"
        ),
    )
    classes: list[str] = Field(description="values of the attribute; empty for numbers")
    predictions: list[Prediction] = Field(description="one record for each source")


class ProxyAnalysis(Record):
    """All of ``proxy.json``."""

    schema_: Literal["glprune.proxy/1"] = Field("glprune.proxy/1", alias="schema")
    model: str = Field(description="digest of the model.onnx whose score was used")
    estimator: str = Field(description="scikit-learn model that predicted the attributes")
    folds: int = Field(description="folds of the cross-validation")
    shuffles: int = Field(description="permutations of the attribute behind `shuffled`")
    seed: int = Field(description="random seed of folds and permutations")
    attributes: list[ProxyAttribute] = Field(description="one record for each protected attribute")
    limits: list[str] = Field(description="what the analysis cannot show")


class Report(Record):
    """All of ``report.json``."""

    schema_: Literal["glprune.report/2"] = Field(
        alias="schema",
        description="schema of the report and its version",
    )
    title: str = Field(description="title of the model")
    purpose: str = Field(description="intended use of the model, as the recipe states it")
    domain: Domain | None = Field(
        None, description="what the model is used for, to choose regulations; null: the page lists none"
    )
    jurisdiction: Jurisdiction | None = Field(
        None, description="where, to choose regulations; null: anywhere"
    )
    task: Literal["binary", "multiclass", "regression", "distillation"] = Field(
        description=(
            "task of the model; `distillation`: there are no labels, every metric is agreement with the "
            "original network"
        ),
    )
    digests: Digests = Field(description="SHA-256 digests of inputs and outputs of the run")
    run: Run = Field(description="environment of the run")
    timing: Timing = Field(description="when the run was made and how long it took")
    data: DataFacts = Field(description="the data as read")
    features: list[Feature] = Field(description="every input feature, in the order of the data")
    hidden: list[HiddenLayer] = Field(description="hidden layers whose units can be removed")
    penalty: PenaltyFacts = Field(description="penalty of the regularisation path")
    path: list[PathPoint] = Field(
        description="points of the regularisation path, in the order they were computed",
    )
    selection: Selection = Field(description="how the shipped network was chosen")
    stages: list[SearchStage] = Field(description="stages of the search, in order")
    frontier: Frontier | None = Field(
        None, description="networks of other sizes; null where the recipe has no `target.frontier`"
    )
    stability: Stability | None = Field(
        None,
        description=(
            "stability of the selected features over resamples of the training rows; null if not measured"
        ),
    )
    drop_costs: DropCosts | None = Field(
        None,
        description="cost of dropping each kept feature (leave-one-out ablation); null if not measured",
    )
    removal: Removal = Field(description="comparison of outputs before and after removal")
    refit: Refit | None = Field(
        description="training without penalty after the last stage; null if there was none",
    )
    lr_halvings: LrHalvings | None = Field(
        None,
        description="halvings of the step size; null if there were none",
    )
    performance: list[Metric] = Field(description="metrics on the test split")
    agreement: list[Agreement] = Field(
        description=(
            "agreement of each output with the original network, where the network has several outputs or"
            " no labels"
        ),
    )
    baselines: Baselines | None = Field(
        None,
        description="simpler selections of the same size; null if not measured",
    )
    size: Size = Field(description="parameters, multiply-accumulates and file size before and after")
    latency: list[Latency] = Field(description="latency at every measured batch size")
    widths: WidthTiming | None = Field(
        None,
        description="timing of rounded hidden widths, where the recipe sets target.round_to: auto; else null",
    )
    export: Export = Field(description="the shipped ONNX file")
    quantized: Quantized | None = Field(None, description="the 8-bit file; null if there is none")
    policy: Policy | None = Field(None, description="rules of the recipe on features; null if it has none")
    segments: Segments | None = Field(
        None,
        description="decisions and metrics by protected attribute; null if there is no policy",
    )
    reason_codes: ReasonCodes | None = Field(
        None,
        description="reason codes by the fate of their features; null if the policy lists none",
    )
    proxies: Proxies | None = Field(
        None,
        description="proxy analysis of protected attributes; null if there is no policy",
    )
    warnings: list[str] = Field(description="what a reader must know before using the model")
    not_measured: list[str] = Field(description="what this run did not measure")


def report_schema() -> dict[str, Any]:
    """The JSON Schema of ``report.json``."""
    schema = Report.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "glprune report"} | schema
