"""The report's records: everything ``report.json`` says, as strict pydantic models.

The records hold measured values only; sentences and pictures are made from them by
:mod:`glprune.render`. Times and latencies are the only values that differ between two
runs with the same recipe, seed and machine; they live under ``timing`` and ``latency``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PathStage = Literal["inputs", "hidden"]
DType = Literal["float32", "int64", "bool"]


class Record(BaseModel):
    """A frozen record that refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Digests(Record):
    """SHA-256 digests, ``sha256:`` followed by 64 hex digits, of what went in and out."""

    recipe: str
    recipe_resolved: str
    model: str
    data: dict[str, str] = Field(description="split or file name -> digest")
    outputs: dict[str, str] = Field(description="bundle file name -> digest, report files excluded")


class Run(Record):
    """Where and with what the run was made."""

    seed: int
    threads: int
    platform: str
    versions: dict[str, str]


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
    """One input field: a column, or several columns that live and die together."""

    name: str
    columns: list[str]
    status: Literal["kept", "removed"]
    group_size: int = Field(description="number of weights leaving the field")
    penalty_weight: float = Field(description="multiplies lambda, as penalty.weights says")
    norm_original: float = Field(description="L2 norm of the group in the trained network")
    norm_selected: float = Field(description="L2 norm at the selected point of the path; 0 if removed")
    norm_final: float | None = Field(description="L2 norm in the shipped network; null if removed")
    lambda_exit: float | None = Field(description="first lambda at which the group was exactly zero")
    input: str = Field(description="the network's input it belongs to")
    input_columns: list[int] | None = Field(description="columns of that input as shipped; null if removed")
    kept_in: int | None = Field(
        None,
        description="number of `stability.resamples` in which the field was kept; null where that was not "
        "measured or the field cannot be removed",
    )
    kept_share: float | None = Field(None, description="the same as a share of them")


class HiddenLayer(Record):
    """The units of one layer (or of several layers whose units are tied)."""

    name: str
    before: int
    after: int
    refused: str | None = Field(description="operation that forbids cutting these units, or null")


class PathPoint(Record):
    """One lambda of the regularisation path, measured on the penalised network."""

    stage: PathStage = Field(
        description="`inputs`: the path that chose the fields (hidden units may be penalised along); "
        "`hidden`: the second path, over hidden units alone"
    )
    lam: float
    objective: float = Field(description="training loss + penalty at this point")
    loss: float
    penalty: float
    kkt_zero: float = Field(
        description="largest relative violation of the optimality conditions over zero groups"
    )
    kkt_active: float = Field(description="the same over non-zero groups")
    fields: int = Field(description="input fields with a non-zero group")
    columns: int
    hidden: int = Field(description="hidden units with a non-zero group")
    metric: float = Field(description="selection metric on the validation split, before any refit")
    refit_metric: float | None = Field(description="the same after a refit, where one was made")
    norms: list[float] = Field(description="group norm of every field, of the path's network, in their order")
    selected: bool


class Selection(Record):
    """How the point was chosen."""

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


class Refusal(Record):
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
    refused: list[Refusal]


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
    opset: int
    inputs: list[Input] = Field(description="in the file's order")
    outputs: list[Output] = Field(description="in the file's order")
    checker: Literal["passed"]
    rows: int
    difference: float = Field(description="ONNX Runtime against PyTorch on the test split")


class Refit(Record):
    """The training without penalty on the slim network."""

    epochs: int
    best_epoch: int
    distill: float
    metric: float = Field(description="selection metric on the validation split after the refit")


class Interval(Record):
    """A 95 % confidence interval."""

    low: float
    high: float


class Resample(Record):
    """The path on one random part of the training rows, from the same trained network."""

    seed: int = Field(description="seed of the shuffling")
    rows: int
    lam: float
    metric: float = Field(description="selection metric on the validation split, before any refit")
    kept: str = Field(
        pattern="^[01]+$", description="one digit for each of `features`, in order: 1 kept, 0 exactly zero"
    )


class Stability(Record):
    """How alike the choices of fields are; every figure is over the fields that can be removed."""

    share: float = Field(description="share of the training rows in a resample")
    pairs: bool = Field(description="whether two by two they are complementary halves")
    seeds: Literal["own", "recipe"]
    limit: int = Field(description="fields a path was to keep at most: as many as the shipped model")
    removable: str = Field(
        pattern="^[01]+$", description="one digit for each of `features`, in order: 1 can be removed"
    )
    threshold: float = Field(description="share of the resamples from which on a field is called stable")
    stable: int = Field(description="fields kept in at least that share")
    mean_kept: float = Field(description="fields kept, mean over the resamples")
    jaccard: float = Field(
        description="mean over all pairs of resamples: fields both keep over fields either keeps"
    )
    nogueira: float | None = Field(
        description="Nogueira's index: 1 for the same fields every time, 0 as by chance; null where each "
        "resample keeps all fields or none"
    )
    nogueira_interval: Interval | None = Field(
        description="of the index, the resamples taken as independent; null below 10 of them, too few for it"
    )
    false_bound: float | None = Field(
        description="bound by Meinshausen and Buehlmann on the expected number of stable fields that matter "
        "for nothing, mean_kept^2 / ((2 threshold - 1) fields), on the assumptions that such fields are "
        "equally likely to be kept, no more likely than by guessing, and that the rows trained nothing "
        "else; null where it is not below `stable`, or the resamples are not halves"
    )
    resamples: list[Resample]


class DropCost(Record):
    """The shipped network without one field, refitted."""

    field: str
    valid: float | None = Field(description="metric on the validation split; null where it cannot be dropped")
    test: float | None = Field(description="metric on the test split")
    reason: str | None = Field(description="why the field cannot be dropped, or null")


class DropCosts(Record):
    """What it costs to drop each kept field; every value was taken through ONNX Runtime."""

    metric: str
    higher_is_better: bool
    valid_rows: int
    test_rows: int
    valid: float = Field(description="the shipped file's metric on the validation split")
    test: float = Field(description="the shipped file's metric on the test split")
    refitted_valid: float = Field(description="the shipped network refitted once more, nothing dropped")
    refitted_test: float
    fields: list[DropCost] = Field(description="the kept fields, in the order of `features`")


class Report(Record):
    """All of ``report.json``."""

    schema_: Literal["glprune.report/1"] = Field(alias="schema")
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
    path: list[PathPoint]
    selection: Selection
    hidden_selection: Selection | None = Field(description="the point of the second path, or null")
    stability: Stability | None = Field(None, description="of the choice of fields, if measured")
    drop_costs: DropCosts | None = Field(None, description="of each kept field, if measured")
    removal: Removal
    refit: Refit | None
    performance: list[Metric]
    agreement: list[Agreement] = Field(description="of each output, where the network has several")
    size: Size
    latency: list[Latency]
    export: Export
    warnings: list[str]
    not_measured: list[str]


def report_schema() -> dict[str, Any]:
    """The JSON Schema of ``report.json``."""
    schema = Report.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "glprune report"} | schema
