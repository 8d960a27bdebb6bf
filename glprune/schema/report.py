"""The report's records: everything ``report.json`` says, as strict pydantic models.

The records hold measured values only; sentences and pictures are made from them by
:mod:`glprune.report.html`. Times and latencies are the only values that differ between two
runs with the same recipe, seed and machine; they live under ``timing`` and ``latency``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

GroupKind = Literal["input", "hidden"]
DType = Literal["float32", "int64", "bool"]
ProxySource = Literal["kept inputs", "removed inputs", "score"]


class Record(BaseModel):
    """A frozen record that refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Digests(Record):
    """SHA-256 digests, ``sha256:`` followed by 64 hex digits, of what went in and out."""

    recipe: str
    recipe_resolved: str
    model: str
    data: dict[str, str] = Field(description="split or file name -> digest")
    outputs: dict[str, str] = Field(
        description="bundle file name -> digest, of the files written before the report"
    )


class Run(Record):
    """Where and with what the run was made."""

    seed: int
    threads: int = Field(description="of one tensor operation; results depend on their number")
    platform: str
    cpu: str | None = Field(
        None, description="instructions PyTorch's kernels use, such as AVX2; results depend on them"
    )
    versions: dict[str, str]
    plugins: dict[str, str] = Field(
        default_factory=dict, description="group:name of a plugin that took part -> its package and version"
    )


class LrHalvings(Record):
    """How often a step size was halved since a loss, a gradient or a weight was not finite."""

    path: int = Field(description="over the points of `path`")
    refit: int = Field(description="over the refits of `stages`")


class Timing(Record):
    """Wall-clock facts; not reproducible by nature."""

    generated_at: str = Field(description="RFC 3339, UTC")
    seconds: dict[str, float] = Field(description="stage -> wall seconds")


class SplitFacts(Record):
    """One data split as it was used."""

    rows: int
    target: dict[str, float] = Field(
        description="class label -> share of rows, or mean/std of a regression target; empty for distillation"
    )


class DataFacts(Record):
    """The data as read."""

    source: str
    splits: dict[str, SplitFacts]
    classes: list[str] | None
    standardize: Literal["none", "train"]
    notes: list[str]


class Feature(Record):
    """One input feature: a column, or several columns that live and die together."""

    name: str
    columns: list[str]
    status: Literal["kept", "removed"]
    group_size: int = Field(description="number of weights leaving the feature")
    penalty_weight: float = Field(
        description="multiplies lambda, as penalty.weights says; in the last stage that had the feature"
    )
    norm_original: float = Field(description="L2 norm of the group in the trained network")
    norm_selected: float = Field(
        description="L2 norm at the selected point of the last path over inputs; 0 if removed"
    )
    norm_final: float | None = Field(description="L2 norm in the shipped network; null if removed")
    lambda_exit: float | None = Field(
        description="first lambda of the stage that removed it at which the group was exactly zero"
    )
    stage_exit: int | None = Field(description="number of the stage that removed it")
    input: str = Field(description="the network's input it belongs to")
    input_columns: list[int] | None = Field(description="columns of that input as shipped; null if removed")
    kept_in: int | None = Field(
        None,
        description="number of `stability.n_resamples` in which the feature was kept; null where that was not "
        "measured or the feature cannot be removed",
    )
    kept_share: float | None = Field(None, description="the same as a share of them")
    reason: str | None = Field(
        None,
        description="why it is removed: `penalty`, `must_drop`, or `derived_from` and the name in must_drop; "
        "`must_keep` of a feature kept by the policy; null of one the penalty left",
    )


class HiddenLayer(Record):
    """The units of one layer (or of several layers whose units are tied)."""

    name: str
    before: int
    after: int
    refused: str | None = Field(description="operation that forbids cutting these units, or null")


class PenaltyFacts(Record):
    """The penalty of the path, every default written out."""

    kind: Literal["group_lasso", "sparse_group_lasso", "group_mcp", "plugin"]
    plugin: str | None = Field(None, description="name of the plugin; null for glprune's own penalties")
    weights: Literal["size", "adaptive"] = Field(
        description="of the groups: by their size, or by that over their trained norm too"
    )
    l1_ratio: float | None = Field(
        description="share of the L1 term on single weights, of the sparse group LASSO; null for others"
    )
    gamma: float | None = Field(
        description="knot of the group MCP in multiples of a group's trained norm; null for others"
    )


class PathPoint(Record):
    """One lambda of the regularisation path, measured on the penalised network."""

    stage: int = Field(description="number of the stage it belongs to, from 1")
    lam: float
    objective: float = Field(description="training loss + penalty at this point")
    loss: float
    penalty: float
    kkt_zero: float = Field(
        description="largest relative violation of the optimality conditions over zero groups"
    )
    kkt_active: float = Field(description="the same over non-zero groups")
    features: int = Field(description="input features with a non-zero group")
    columns: int
    hidden: int = Field(description="hidden units with a non-zero group")
    metric: float = Field(description="selection metric on the validation split, before any refit")
    refit_metric: float | None = Field(description="the same after a refit, where one was made")
    norms: list[float] = Field(
        description="group norm of every feature in their order, 0 once removed; with more than 1,000 features "
        "of selected points alone, else empty"
    )
    selected: bool = Field(description="whether its stage chose it")


class SearchStage(Record):
    """One path of the search and the network it led to.

    The next stage begins with that network: its zero groups are cut, the rest was refitted, and
    every group is weighted anew.
    """

    number: int
    penalised: list[GroupKind] = Field(description="kinds of groups under the penalty")
    rule: str = Field(description="what its point was chosen by")
    input_strength: float = Field(description="factor on the strength of input groups")
    lam: float = Field(description="lambda of the chosen point")
    features: int = Field(description="input features left")
    hidden: int = Field(description="hidden units left, of those that can be cut")
    metric: float = Field(description="selection metric on the validation split after the stage's refit")


class Selection(Record):
    """How the shipped network was chosen."""

    rule: str
    lam: float
    metric: str
    split: Literal["valid"] = "valid"
    reference: float = Field(description="the metric of the original network on the same split")


class Cut(Record):
    """One certified cut: outputs of the zeroed network before and after it."""

    name: str
    kind: Literal["input", "hidden"]
    units: int = Field(description="units removed by this cut")
    difference: float = Field(description="max |a - b| / max(1, max |a|) over all probed rows")
    removal: Literal["cut", "constant"] = Field(
        "cut",
        description="`cut`: weights were sliced; `constant`: the file has no such input and feeds the "
        "network a constant inside, since its code is written for the full width",
    )
    inexact: str | None = Field(
        None, description="operation that mixes the units, where the recipe allows an inexact cut"
    )


class Skipped(Record):
    """Units that stayed, and the operation that forbids removing them."""

    name: str
    units: int
    reason: str


class Removal(Record):
    """Evidence that removal changed nothing."""

    tolerance: float
    rows: int
    difference: float = Field(description="zeroed dense against slim, same measure as in cuts")
    cuts: list[Cut]
    refused: list[Skipped]


class Metric(Record):
    """One metric on the test split, every value taken through ONNX Runtime."""

    name: str
    higher_is_better: bool
    rows: int
    original: float
    zeroed: float = Field(description="slim network before the refit")
    final: float = Field(description="the shipped model.onnx")


class Size(Record):
    """Counts before and after."""

    parameters_before: int
    parameters_after: int
    macs_before: int = Field(description="multiply-accumulates for one row")
    macs_after: int
    onnx_bytes_before: int
    onnx_bytes_after: int


class Latency(Record):
    """ONNX Runtime latency, original and slim interleaved in one process."""

    batch: int
    runs: int
    threads: int
    original_ms: float = Field(description="median")
    original_p95_ms: float
    slim_ms: float = Field(description="median")
    slim_p95_ms: float
    speedup: float = Field(description="median of the pairwise ratios original / slim")


class WidthTiming(Record):
    """Hidden widths as they came out against widths rounded up to multiples, before the last refit."""

    round_to: int = Field(description="of the shipped widths: 1, or `tried` where that was faster")
    tried: int
    batch: int
    runs: int
    exact_ms: float = Field(description="median, through ONNX Runtime")
    rounded_ms: float = Field(description="median, in turn with the other")
    speedup: float = Field(description="median of the pairwise ratios exact / rounded")


class Input(Record):
    """One input of the shipped file."""

    name: str
    dtype: DType
    axis: int | None = Field(description="axis that holds the columns; null where the input passes whole")
    columns: list[str] = Field(description="names along that axis, in order; empty where they have none")


class Output(Record):
    """One output of the shipped file."""

    name: str
    meaning: str


class Agreement(Record):
    """One output of the shipped file against the original network's, on the test split."""

    name: str
    r2: float | None = Field(
        description="share of the original's variance explained; null where the original never varies"
    )
    max_change: float = Field(description="largest absolute change of a value")
    trained_for: bool = Field(description="whether the loss followed this output")


class Export(Record):
    """The shipped file."""

    file: str
    signature: Literal["slim", "original"]
    exporter: str
    names: Literal["all", "digest"] = Field(
        "all",
        description="how the file's metadata gives the names of its columns: all of them, or their number "
        "and SHA-256",
    )
    opset: int
    inputs: list[Input] = Field(description="in the file's order")
    outputs: list[Output] = Field(description="in the file's order")
    checker: Literal["passed"]
    rows: int
    difference: float = Field(description="ONNX Runtime against PyTorch on the test split")


class QuantizedMetric(Record):
    """One metric on the test split, of both files through ONNX Runtime."""

    name: str
    higher_is_better: bool
    float32: float = Field(description="of model.onnx")
    int8: float


class QuantizedLatency(Record):
    """Latency of model.onnx and the 8-bit file, in turn; medians."""

    batch: int
    runs: int
    float32_ms: float
    int8_ms: float
    speedup: float = Field(description="median of the pairwise ratios float32 / int8")


class Quantized(Record):
    """The file in 8-bit integers beside the shipped one; its outputs are others, so nothing is certified."""

    file: str
    method: Literal["static", "dynamic"] = Field(
        description="ranges of activations: over training rows, or of the batch at hand"
    )
    products: int = Field(description="matrix products and convolutions computed in integers")
    products_of: int = Field(description="all of the file")
    calibration_rows: int = Field(description="training rows the ranges were taken over; 0 for dynamic")
    bytes: int
    rows: int = Field(description="rows of the test split")
    metrics: list[QuantizedMetric]
    same_decisions: float | None = Field(
        description="share of the test rows both files decide alike; null: no classes"
    )
    difference: float = Field(
        description="largest change of an output against model.onnx on the test split, over its largest value"
    )
    golden_difference: float = Field(description="the same on the golden rows, where anybody can repeat it")
    latency: list[QuantizedLatency]


class Refit(Record):
    """The training without penalty on the slim network."""

    epochs: int
    best_epoch: int
    distill: float
    metric: float = Field(description="selection metric on the validation split after the refit")


class Spread(Record):
    """A metric over the selections of a baseline."""

    name: str
    mean: float = Field(description="the value itself where there is one selection")
    std: float | None = Field(description="sample standard deviation; null where there is one selection")


class BaselineRun(Record):
    """One selection: cut from the trained network, refitted and exported as the shipped one was."""

    kept: list[str] = Field(description="the features its file reads, in the order of `features`")
    common: int = Field(description="of them, those the shipped model keeps too")
    hidden: int = Field(description="hidden units left")
    common_hidden: int = Field(description="of them, those the shipped model keeps too")
    valid: float = Field(description="selection metric on the validation split, after the refit")
    test: dict[str, float] = Field(
        description="every metric of the task on the test split, through ONNX Runtime"
    )


class Baseline(Record):
    """A way to select, and what its selections gave."""

    name: Literal["random", "magnitude", "permutation"]
    valid: Spread = Field(description="selection metric on the validation split")
    test: list[Spread] = Field(description="every metric on the test split, through ONNX Runtime")
    runs: list[BaselineRun] = Field(description="one; for random selection one for each draw")


class Baselines(Record):
    """Simpler selections of the shipped size: as many features of every input, as many units of every layer."""

    features: int = Field(description="features the shipped model keeps")
    hidden: int = Field(description="hidden units the shipped model keeps")
    valid: float = Field(description="the shipped network's selection metric on the validation split")
    rows: int = Field(description="rows of the test split")
    repeats: int = Field(description="permutations of the validation rows behind each feature's importance")
    results: list[Baseline] = Field(description="empty where nothing was cut")
    notes: list[str] = Field(description="what could not be compared, or not on equal terms, and why")


class Interval(Record):
    """A 95 % confidence interval."""

    low: float
    high: float


class Resample(Record):
    """The search on one random part of the training rows, from the same trained network."""

    seed: int = Field(description="seed of the shuffling")
    rows: int
    stages: int = Field(description="paths it took")
    lam: float = Field(description="lambda its last path chose")
    metric: float = Field(description="selection metric on the validation split, without a last refit")
    kept: str = Field(
        pattern="^[01]+$", description="one digit for each of `features`, in order: 1 kept, 0 removed"
    )


class Stability(Record):
    """How alike the choices of features are; every figure is over the features that can be removed."""

    subsample: float = Field(description="share of the training rows in a resample")
    pairs: bool = Field(description="whether two by two they are complementary halves")
    seeds: Literal["per_resample", "recipe"]
    limit: int = Field(description="features a search was to keep at most: as many as the shipped model")
    removable: str = Field(
        pattern="^[01]+$",
        description="one digit for each of `features`, in order: 1 can be removed, and no policy decides it",
    )
    threshold: float = Field(description="share of the resamples from which on a feature is called stable")
    stable: int = Field(description="features kept in at least that share")
    mean_kept: float = Field(description="features kept, mean over the resamples")
    jaccard: float = Field(
        description="mean over all pairs of resamples: features both keep over features either keeps"
    )
    nogueira: float | None = Field(
        description="Nogueira's index: 1 for the same features every time, 0 as by chance; null where each "
        "resample keeps all features or none"
    )
    nogueira_interval: Interval | None = Field(
        description="of the index, the resamples taken as independent; null below 10 of them, too few for it"
    )
    false_bound: float | None = Field(
        description="bound by Meinshausen and Buehlmann on the expected number of stable features that matter "
        "for nothing, mean_kept^2 / ((2 threshold - 1) features), on the assumptions that such features are "
        "equally likely to be kept, no more likely than by guessing, and that the rows trained nothing "
        "else; null where it is not below `stable`, or the resamples are not halves"
    )
    resamples: list[Resample]
    failures: list[str] = Field(description="why a search found nothing, for each that did not; not counted")


class DropCost(Record):
    """The shipped network without one feature, refitted."""

    feature: str
    valid: float | None = Field(description="metric on the validation split; null where it cannot be dropped")
    test: float | None = Field(description="metric on the test split")
    reason: str | None = Field(description="why the feature cannot be dropped, or null")


class DropCosts(Record):
    """What it costs to drop each kept feature; every value was taken through ONNX Runtime."""

    metric: str
    higher_is_better: bool
    valid_rows: int
    test_rows: int
    valid: float = Field(description="the shipped file's metric on the validation split")
    test: float = Field(description="the shipped file's metric on the test split")
    refitted_valid: float = Field(description="the shipped network refitted once more, nothing dropped")
    refitted_test: float
    features: list[DropCost] = Field(description="the kept features, in the order of `features`")


class Policy(Record):
    """What the producer's rules say of features; ``glprune verify`` holds the bundle to them."""

    must_drop: list[str] = Field(
        [], description="features or columns that must not be read, nor anything derived from them"
    )
    must_keep: list[str] = Field([], description="features that must stay, themselves or derived")
    protected: list[str] = Field([], description="features that are named where they are read")
    derived_from: dict[str, list[str]] = Field(
        {}, description="column or feature -> the features it is made of"
    )


class DecisionChange(Record):
    """Decisions of the shipped file against the original's, on the same rows."""

    rows: int
    flipped: int = Field(description="rows decided otherwise")
    to_adverse: int | None = Field(description="of them from a class that is not adverse to one that is")
    to_favourable: int | None = Field(description="the other way; null where no class is called adverse")
    adverse_original: int | None = Field(description="rows the original decides adversely")
    adverse_final: int | None = Field(description="rows the shipped file decides adversely")


class SegmentMetric(Record):
    """One metric on the rows of a segment, through ONNX Runtime."""

    name: str
    original: float | None = Field(
        description="null where these rows do not define it, as AUROC of one class"
    )
    final: float | None
    difference: float | None = Field(description="final less original")


class Segment(Record):
    """The test rows of one value, or range of values, of an attribute."""

    value: str
    rows: int
    suppressed: bool = Field(description="fewer rows than `min_rows`: no figures")
    metrics: list[SegmentMetric]
    decisions: DecisionChange | None


class ProtectedAttribute(Record):
    """A protected attribute and its segments."""

    name: str
    status: Literal["kept", "removed", "outside"] = Field(
        description="as a feature of the network; outside: it never was one"
    )
    by: str = Field(description="how its segments were made")
    segments: list[Segment]


class Segments(Record):
    """Decisions and metrics of the original and the shipped file on the test split, by segment."""

    min_rows: int
    threshold: float | None = Field(description="on the probability of the positive class; null: not binary")
    adverse: list[str] | None = Field(description="classes called adverse")
    decisions: DecisionChange | None = Field(description="over all test rows; null where nothing is decided")
    attributes: list[ProtectedAttribute]


class ReasonCode(Record):
    """A reason given to people, and what became of the features it cites."""

    code: str
    removed: list[str]
    kept: list[str]


class ReasonCodes(Record):
    """Reasons that cite features, as the recipe lists them."""

    retired: list[ReasonCode] = Field(description="all features cited are removed: it can no longer occur")
    to_review: list[ReasonCode] = Field(description="some of its features are removed")
    unchanged: list[ReasonCode] = Field(description="all its features are kept")


class Proxies(Record):
    """Whether protected attributes were predicted from inputs and score; the figures are in a file apart."""

    performed: bool
    reason: str | None = Field(description="why not, else null")
    file: str | None
    digest: str | None = Field(description="SHA-256 of that file; it can be withheld")


class Prediction(Record):
    """How well an attribute is predicted from one source."""

    source: ProxySource
    columns: int = Field(description="columns it was predicted from")
    rows: int
    left_out: list[str] = Field(description="classes of too few rows here, which were not counted")
    value: float | None = Field(description="mean over the folds; null where it could not be measured")
    std: float | None = Field(description="sample standard deviation over the folds")
    shuffled: float | None = Field(description="the same with the attribute's values permuted: no relation")
    reason: str | None = Field(description="why it could not be measured, else null")


class ProxyAttribute(Record):
    """One protected attribute."""

    name: str
    status: Literal["kept", "removed", "outside"] = Field(description="as a feature of the network")
    measure: Literal["auc", "r2"] = Field(
        description="auc: area under the ROC curve, 0.5 as by chance, mean of each class against the rest; "
        "r2: share of the variance, 0 as by its mean"
    )
    classes: list[str] = Field(description="values told apart; empty for numbers")
    predictions: list[Prediction]


class ProxyAnalysis(Record):
    """All of ``proxy.json``."""

    schema_: Literal["glprune.proxy/1"] = Field("glprune.proxy/1", alias="schema")
    model: str = Field(description="digest of the model.onnx whose score was used")
    estimator: str
    folds: int
    shuffles: int
    seed: int
    attributes: list[ProxyAttribute]
    limits: list[str]


class Report(Record):
    """All of ``report.json``."""

    schema_: Literal["glprune.report/2"] = Field(alias="schema")
    title: str
    purpose: str
    task: Literal["binary", "multiclass", "regression", "distillation"] = Field(
        description="distillation: no labels, every metric is agreement with the original network"
    )
    digests: Digests
    run: Run
    timing: Timing
    data: DataFacts
    features: list[Feature]
    hidden: list[HiddenLayer]
    penalty: PenaltyFacts
    path: list[PathPoint]
    selection: Selection
    stages: list[SearchStage]
    stability: Stability | None = Field(None, description="of the choice of features, if measured")
    drop_costs: DropCosts | None = Field(None, description="of each kept feature, if measured")
    removal: Removal
    refit: Refit | None
    lr_halvings: LrHalvings | None = Field(None, description="of step sizes, if there were any")
    performance: list[Metric]
    agreement: list[Agreement] = Field(description="of each output, where the network has several")
    baselines: Baselines | None = Field(None, description="of simpler selections, if measured")
    size: Size
    latency: list[Latency]
    widths: WidthTiming | None = Field(None, description="where the recipe leaves them to the clock")
    export: Export
    quantized: Quantized | None = Field(None, description="of the file in 8-bit integers, if there is one")
    policy: Policy | None = Field(None, description="rules on features, if the recipe has any")
    segments: Segments | None = Field(None, description="by protected attribute, if there is a policy")
    reason_codes: ReasonCodes | None = Field(None, description="if the policy lists any")
    proxies: Proxies | None = Field(None, description="of protected attributes, if there is a policy")
    warnings: list[str]
    not_measured: list[str]


def report_schema() -> dict[str, Any]:
    """The JSON Schema of ``report.json``."""
    schema = Report.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "glprune report"} | schema
