import re
from html.parser import HTMLParser

import pytest

from glprune.report.html import render_html
from glprune.report.markdown import render_markdown
from glprune.report.path_lines import MOST, line_collections
from glprune.report.plots import path_figure
from glprune.report.sentences import banner, headline, number, penalty_sentence
from glprune.schema.report import (
    Cut,
    DataFacts,
    Digests,
    Export,
    Feature,
    HiddenLayer,
    Input,
    Latency,
    Metric,
    Output,
    PathPoint,
    PenaltyFacts,
    Removal,
    Report,
    Run,
    SearchStage,
    Selection,
    Size,
    Skipped,
    SplitFacts,
    Timing,
)

HASH = "sha256:" + "0" * 64
HOSTILE = ["<script>alert(1)</script>", "größe & 'preis'", "a" * 300, "$x_1$", "]]>"]


def report(names, removed=2, slower=False, points=5, lam=None):
    features = [
        Feature(
            name=name,
            columns=[name],
            status="removed" if i < removed else "kept",
            group_size=8,
            penalty_weight=8**0.5,
            norm_original=1.0,
            norm_selected=0.0 if i < removed else 0.5,
            norm_final=None if i < removed else 0.1 + i,
            lambda_exit=0.01 if i < removed else None,
            stage_exit=1 if i < removed else None,
            input="features",
            input_columns=None if i < removed else [i - removed],
        )
        for i, name in enumerate(names)
    ]
    lams = [lam] if lam is not None else [10.0 ** (i - points) for i in range(points)]
    path = [
        PathPoint(
            stage=1,
            lam=value,
            objective=1.0,
            loss=0.5,
            penalty=0.5,
            kkt_zero=0.0,
            kkt_active=0.01,
            features=len(names) - removed,
            columns=len(names) - removed,
            hidden=10,
            metric=0.8,
            refit_metric=0.81,
            norms=[f.norm_selected for f in features],
            selected=i == len(lams) - 1,
        )
        for i, value in enumerate(lams)
    ]
    return Report(
        schema="glprune.report/2",
        title="A <b>title</b>",
        purpose="",
        task="binary",
        digests=Digests(recipe=HASH, recipe_resolved=HASH, model=HASH, data={"file": HASH}, outputs={}),
        run=Run(seed=0, threads=2, platform="Linux x86_64", versions={"glprune": "0"}),
        timing=Timing(generated_at="2026-01-01T00:00:00+00:00", seconds={}),
        data=DataFacts(
            source="x.csv",
            splits={"test": SplitFacts(rows=9, target={"a": 0.5, "b": 0.5})},
            classes=["a", "b"],
            standardize="none",
            notes=[],
        ),
        features=features,
        hidden=[HiddenLayer(name="0", before=10, after=4, refused=None)],
        penalty=PenaltyFacts(kind="group_lasso", weights="size", l1_ratio=None, gamma=None),
        path=path,
        selection=Selection(rule="r", lam=lams[-1], metric="auroc", reference=0.8),
        stages=[
            SearchStage(
                number=1,
                penalised=["input"],
                rule="r",
                input_strength=1.0,
                lam=lams[-1],
                features=len(names) - removed,
                hidden=10,
                metric=0.81,
            )
        ],
        removal=Removal(
            tolerance=1e-5,
            rows=512,
            difference=1e-7,
            cuts=[Cut(name="x", kind="input", units=removed, difference=1e-7)],
            refused=[Skipped(name="1", units=3, reason="LayerNorm 'n' mixes the units")],
        ),
        refit=None,
        performance=[
            Metric(name="auroc", higher_is_better=True, rows=9, original=0.8, zeroed=0.7, final=0.75)
        ],
        agreement=[],
        size=Size(
            parameters_before=100,
            parameters_after=40,
            macs_before=90,
            macs_after=30,
            onnx_bytes_before=1000,
            onnx_bytes_after=700,
        ),
        latency=[
            Latency(
                batch=1,
                runs=50,
                threads=2,
                original_ms=1.0,
                original_p95_ms=1.1,
                slim_ms=0.5,
                slim_p95_ms=0.6,
                speedup=0.8 if slower else 2.0,
            )
        ],
        export=Export(
            file="model.onnx",
            signature="slim",
            exporter="dynamo",
            opset=18,
            inputs=[
                Input(
                    name="features",
                    dtype="float32",
                    axis=-1,
                    columns=[f.name for f in features if f.status == "kept"],
                )
            ],
            outputs=[Output(name="prediction", meaning="logit")],
            checker="passed",
            rows=9,
            difference=1e-7,
        ),
        warnings=["read me"],
        not_measured=["calibration"],
    )


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.links = set(), []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.links += [
            v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith("#")
        ]


@pytest.mark.parametrize(
    ("names", "points"),
    [
        ([f"f{i}" for i in range(20)], 5),
        (HOSTILE, 5),
        ([f"feature number {i}" for i in range(200)], 100),
        ([f"p{i}" for i in range(784)], 5),
    ],
)
def test_the_page_is_one_file_without_script_or_outside_request(names, points):
    page = render_html(report(names, points=points))
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.seen
    assert "b" not in tags.seen
    assert tags.links == []
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page
    assert len(page.encode()) < 500_000


@pytest.mark.parametrize(
    ("total", "removed", "names_removed", "names_kept"),
    [
        (21, 18, False, True),
        (21, 3, True, False),
        (40, 20, True, False),
        (15, 10, True, True),
        (5, 5, True, False),
    ],
)
def test_findings_name_the_shorter_of_removed_and_kept_features(total, removed, names_removed, names_kept):
    names = [f"field{i:02}" for i in range(total)]
    found = report(names, removed=removed)
    for text in (headline(found)[0], render_html(found, pictures=False), render_markdown(found)):
        (sentence,) = re.findall(rf"The shipped model has no input for {removed} of {total}[^\n<]*", text)
        assert all((name in sentence) == names_removed for name in names[:removed])
        assert all((name in sentence) == names_kept for name in names[removed:])


def test_findings_end_a_long_list_with_a_count():
    sentence = headline(report([f"p{i}" for i in range(784)], removed=600))[0]
    assert "It reads p600, p601," in sentence
    assert sentence.endswith("p629 and 154 more.")


def test_findings_name_the_removed_features_first_and_say_what_got_worse():
    sentences = headline(report(["sex", "age", "income"]))
    assert sentences[0].startswith("The shipped model has no input for 2 of 3 features: sex, age.")
    assert "worse by 0.0500" in sentences[1]
    assert "slower" in headline(report(["a", "b", "c"], slower=True))[-1]
    assert headline(report(["a", "b"], removed=0))[0].startswith("No input feature was removed")


def test_the_banner_counts_features_or_hidden_units_where_there_are_none():
    features, metric, parameters = banner(report(["sex", "age", "income"]))
    assert (features.value, features.meaning) == ("2 of 3", "input features removed")
    assert (metric.value, metric.meaning) == ("0.8000 → 0.7500", "AUROC, worse by 0.0500")
    assert (parameters.value, parameters.meaning) == ("100 → 40", "parameters, 40.0 % left")
    hidden = banner(report([], removed=0))[0]
    assert (hidden.value, hidden.meaning) == ("6 of 10", "hidden units removed")
    page = render_html(report([], removed=0), pictures=False)
    assert page.index("Not measured") < page.index('<nav class="contents">') < page.index('id="removed"')


def test_refusals_warnings_and_what_was_not_measured_are_shown():
    page = render_html(report(["a", "b", "c"]))
    for text in ("LayerNorm &#39;n&#39; mixes the units", "read me", "calibration", "1.0e-07"):
        assert text in page


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_a_path_of_one_point_renders(lam):
    assert "Regularisation path" in render_html(report(["a", "b", "c"], points=1, lam=lam))


def test_of_no_feature_no_line_is_drawn():
    bare = report(["a"]).path[0].model_copy(update={"norms": []})
    assert line_collections([bare], []) == []


def test_of_thousands_of_features_the_largest_have_lines_the_rest_a_band_and_the_caption_says_so():
    many = report([f"x{n}" for n in range(5 * MOST)], removed=4 * MOST)
    height = {n: float(n) for n in range(5 * MOST)}
    first, *rest = many.path
    path = [first.model_copy(update={"norms": [*height.values()], "selected": True}), *rest]
    removed, kept = line_collections(path, many.features)
    assert removed.norms[:, 0].tolist() == [float(n) for n in range(3 * MOST, 4 * MOST)]
    assert removed.others == 3 * MOST
    assert removed.band.tolist() == [[0.0, 0.0], [3 * MOST - 1.0, 0.0]]
    assert (len(kept.norms), kept.others, kept.band) == (MOST, 0, None)
    page = render_html(many.model_copy(update={"path": path}))
    assert page.count("<path") < 2.2 * MOST
    assert (
        "of the 4,000 removed features only the 1,000 with the largest norms, all others are in the" in page
    )
    assert "removed: the 3,000 with smaller norms" in page
    assert "only the chosen points" in page
    few = render_html(report(["a", "b", "c"]))
    assert "one line for each feature.<" in few
    assert "smaller norms" not in few


@pytest.mark.parametrize("points", [1, 5])
def test_the_picture_is_as_high_as_the_largest_norm_left_without_a_line(points):
    many = report([f"x{n}" for n in range(MOST + 3)], removed=MOST + 2, points=points)
    norms = [1.0] * (MOST + 2) + [0.5]
    path = [p.model_copy(update={"norms": norms}) for p in many.path]
    (axes,) = path_figure(path, many.features).axes
    assert axes.get_ylim()[0] == 0.0
    assert axes.get_ylim()[1] > 1.0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "kept",
        "removed",
        "removed: the 2 with smaller norms",
    ]


def test_the_same_report_gives_the_same_bytes():
    assert render_html(report(HOSTILE)) == render_html(report(HOSTILE))


def test_numbers_are_readable():
    assert [number(v) for v in (0.0, 0.12345, 1.5e-7, 12345678.0)] == ["0", "0.1235", "1.5e-07", "1.2e+07"]


def test_the_penalty_is_told_in_words():
    def said(kind, weights="size", within=None, concavity=None):
        facts = PenaltyFacts(kind=kind, weights=weights, l1_ratio=within, gamma=concavity)
        return penalty_sentence(facts)

    page = render_html(report(["a", "b", "c"]))
    assert said("group_lasso") in page
    assert "weak" not in page
    assert "sparse group LASSO" in said("sparse_group_lasso", within=0.05)
    assert "5 % of its strength" in said("sparse_group_lasso", within=0.05)
    assert "1.5 times its trained one" in said("group_mcp", concavity=1.5)
    assert "weak in the trained network" in said("group_lasso", "adaptive")
