import pytest

from glprune.errors import RecipeError
from glprune.schema.recipe_loading import load_recipe

GOOD = """\
task: binary
model: {factory: "a.py:build"}
data:
  file: x.csv
  target: y
penalty:
  inputs: {strength: 1}
target:
  lambda: 1e-3
train:
  batch_size: all
  lr: 1
"""


def write(tmp_path, text, name="recipe.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_resolved_recipe_loads_back_to_the_same_settings(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD))
    again = load_recipe(write(tmp_path, recipe.to_yaml(), "resolved.yaml"))
    assert again.model_dump() == recipe.model_dump()
    assert again.to_yaml() == recipe.to_yaml()
    assert recipe.target.lam == 1e-3
    assert recipe.penalty.hidden is None
    assert recipe.train.lr == 1.0


def test_null_penalties_survive_the_round_trip(tmp_path):
    text = GOOD.replace("inputs: {strength: 1}", "inputs: null\n  hidden: {strength: 2}")
    recipe = load_recipe(write(tmp_path, text))
    again = load_recipe(write(tmp_path, recipe.to_yaml(), "resolved.yaml"))
    assert again.penalty.inputs is None
    assert again.penalty.hidden.strength == 2.0


BAD = [
    ("batch_size: all", "batch_size: some", ":11: train.batch_size should be a whole number or 'all'"),
    ("batch_size: all", "batch_size: 0", ":11: train.batch_size should be at least 1 or 'all'"),
    ("lambda: 1e-3", "lamda: 1", ":9: target.lamda is not a key. Did you mean 'lambda'?"),
    ("lr: 1", "lr: '1'", ":12: train.lr should be a number, not '1'"),
    ("lr: 1", "lr: true", ":12: train.lr should be a number, not True"),
    ("lr: 1", "lr: 0", ":12: train.lr should be above 0"),
    ("lr: 1", "lr: .nan", ":12: train.lr should be a finite number"),
    ("lr: 1", "epochs: 1.5", ":12: train.epochs should be a whole number"),
    ("lr: 1", "momentum: 0.9", "momentum belongs to optimizer: sgd"),
    ("inputs: {strength: 1}", "l1_ratio: 0.1", "l1_ratio belongs to kind: sparse_group_lasso"),
    ("inputs: {strength: 1}", "gamma: 2", "gamma belongs to kind: group_mcp"),
    (
        "inputs: {strength: 1}",
        "kind: group_mcp\n  l1_ratio: 0.1",
        "l1_ratio belongs to kind: sparse_group_lasso",
    ),
    (
        "inputs: {strength: 1}",
        "kind: sparse_group_lasso\n  l1_ratio: 1",
        "penalty.l1_ratio should be below 1",
    ),
    ("inputs: {strength: 1}", "kind: group_mcp\n  gamma: 1", "penalty.gamma should be above 1"),
    (
        "inputs: {strength: 1}",
        "kind: group_lasoo",
        "penalty.kind should be 'group_lasso', 'sparse_group_lasso', 'group_mcp', 'tree_group_lasso',",
    ),
    (
        "inputs: {strength: 1}",
        "groups: {a: [b, c]}",
        ":7: penalty: groups belongs to kind: tree_group_lasso or latent_group_lasso; remove it",
    ),
    ("inputs: {strength: 1}", "kind: tree_group_lasso", "kind: tree_group_lasso needs groups"),
    (
        "inputs: {strength: 1}",
        "kind: tree_group_lasso\n  groups:\n    a: [b, x]\n    b: a",
        ":8: penalty: groups: a <- b <- a is a cycle; remove one of them",
    ),
    (
        "inputs: {strength: 1}",
        "kind: latent_group_lasso\n  inputs: null\n  hidden: {}\n  groups: {a: b}",
        "groups are groups of inputs, and inputs is null",
    ),
    (
        "inputs: {strength: 1}",
        "kind: latent_group_lasso\n  groups: {a: []}",
        ":8: penalty.groups.a should",
    ),
    ("inputs: {strength: 1}", "weights: hessian", "penalty.weights should be 'size', 'adaptive', 'fisher'"),
    ("lr: 1", "epochs: 0\n  full_batch_steps: 0", "nothing would be trained"),
    ("lambda: 1e-3", "max_features: 0", ":9: target.max_features should be at least 1"),
    ("lambda: 1e-3", "lambda: 1\n  max_features: 3", "exactly one of max_features, frontier, max_drop"),
    ("lambda: 1e-3", "lambda: -1", ":9: target.lambda should be at least 0"),
    (
        "lambda: 1e-3",
        "max_drop: {metric: r2, amount: 1}",
        ":9: target.max_drop.metric: r2 is not a metric of task: binary",
    ),
    ("lambda: 1e-3", "max_drop: {metric: f1, amount: 1}", ":9: target.max_drop.metric should be 'auroc'"),
    ("lambda: 1e-3", "lambda: 1\n  max_hidden: 3", "target.max_hidden needs penalty.hidden"),
    ("target: y", "target: [1]", ":5: data.target should be text"),
    ("  target: y\n", "", ":3: data: target is missing"),
    ("target: y", "target: y\n  loader: a.py:b", "exactly one of file, train+valid+test, loader or source"),
    ("target: y", "target: y\n  train: a.csv", "must be given together"),
    (
        "target: y",
        "target: y\n  split: {column: s, train: 0.5}",
        ":6: data.split: column and shares contradict",
    ),
    ("target: y", "target: y\n  split: {train: 0.5, valid: 0.2, test: 0.2}", "add up to 1"),
    ("target: y", "target: y\n  classes: [a, b, c]", ":6: data.classes lists 3 classes"),
    ("target: y", "target: y\n  classes: [1, '1']", "lists a class twice"),
    (
        "target: y",
        "target: y\n  features: [a, b, a]",
        ":6: data: features lists 'a' twice; list every feature once",
    ),
    ("target: y", "target: y\n  features: [\u00e9, e\u0301]", "features lists '\u00e9' twice"),
    (
        "target: y",
        "target: y\n  feature_groups: {g: [a], h: [b, b]}",
        ":6: data: feature_groups: 'h' lists 'b' twice",
    ),
    ("inputs: {strength: 1}", "kind: tree_group_lasso\n  groups: {g: [a, a]}", "groups: 'g' lists 'a' twice"),
    ('"a.py:build"}', '"a.py:build", inputs: [{columns: [p, p]}]}', "columns lists 'p' twice"),
    ('"a.py:build"}', '"a.py:build", expect: {auroc: 5}}', "expect.auroc: 5 is above 1, its largest value"),
    ('"a.py:build"}', '"a.py:build", expect: {auroc: 90.3}}', "as it was measured, not in percent"),
    ('"a.py:build"}', '"a.py:build", expect: {log_loss: -1}}', "expect.log_loss: -1 is below 0"),
    ('"a.py:build"}', '"a.py:build", expect: {accuracy: -0.1}}', "expect.accuracy: -0.1 is below 0"),
    (
        "target: y",
        "target: y\n  feature_groups: {a: 3}",
        ":6: data.feature_groups.a should be text or a list",
    ),
    ("task: binary", "task: binry", ":1: task should be 'binary', 'multiclass', 'regression' or"),
    ("task: binary\n", "", "task is missing"),
    (
        "inputs: {strength: 1}",
        "inputs: {strengh: 1}",
        ":7: penalty.inputs.strengh is not a key. Did you mean 'strength'",
    ),
    ("inputs: {strength: 1}", "inputs: null", "both null"),
    ("inputs: {strength: 1}", "inputs: 3", ":7: penalty.inputs should be a mapping"),
    ('"a.py:build"', "abc", ":2: model.factory should be 'package.module:function'"),
    ("task: binary", "task: distillation", ":5: data.target contradicts task: distillation"),
    ("task: binary", "task: distillation\nrefit: {distill: 0.5}", "data.target contradicts"),
    (
        '"a.py:build"}',
        '"a.py:build", inputs: [{name: a, columns: [p]}, {name: b}]}',
        ":2: model.inputs: 'b' has no columns",
    ),
    ('"a.py:build"}', '"a.py:build", inputs: [{axis: 2}]}', ":2: model.inputs: axis 2 of 'features'"),
    ('"a.py:build"}', '"a.py:build", inputs: [{axis: 0}]}', "axis: 0 is the batch"),
    (
        '"a.py:build"}',
        '"a.py:build", inputs: [{axis: null}]}',
        ":7: penalty.inputs: no input has an axis of features; set penalty.inputs: null",
    ),
    (
        '"a.py:build"}',
        '"a.py:build", inputs: [{name: a, columns: [p]}, {name: a, columns: [q]}]}',
        ":2: model: inputs lists 'a' twice",
    ),
    ('"a.py:build"}', '"a.py:build", inputs: [{dtype: text}]}', "dtype should be 'float' or 'int'"),
    ('"a.py:build"}', '"a.py:build", outputs: [features]}', "the name 'features' is taken"),
    ('"a.py:build"}', '"a.py:build", prediction: -1}', "model.prediction should be at least 0 or text"),
    ('"a.py:build"}', '"a.py:build", outputs: [a b]}', "should be a plain name"),
    ("lr: 1", "lr: 1\nexport: {dynamic_axes: {x: {1: n}}}", ":13: export.dynamic_axes: no input 'x'"),
    (
        "lr: 1",
        "lr: 1\nexport: {dynamic_axes: {features: {-1: n}}}",
        "axis -1 of 'features' holds the features",
    ),
    ("lr: 1", "lr: 1\nexport: {dynamic_axes: {features: {x: n}}}", "export.dynamic_axes"),
    ("lr: 1", "lr: 1\n  lr: 2", ':13: found duplicate key "lr"'),
    ("lr: 1", "lr: !!python/object:os.system 1", ":12: anchors, aliases and tags"),
    ("lr: 1", "lr: &a 1", ":12: anchors, aliases and tags"),
    ("lr: 1", "lr: [1", "correct the YAML"),
    ("lr: 1", "1: 2", "key 1 is not text"),
    ("lr: 1", "lr: 2020-01-01", "train.lr"),
]


UNLABELLED = GOOD.replace("binary", "distillation").replace("  target: y\n", "")


def test_a_recipe_without_labels_and_with_axes_loads_back(tmp_path):
    text = UNLABELLED.replace("file: x.csv", "loader: a.py:load").replace(
        "inputs: {strength: 1}", "inputs: null\n  hidden: {}"
    )
    text = text.replace('build"}', 'build", inputs: [{name: ids, axis: null}]}')
    recipe = load_recipe(write(tmp_path, text + "export: {dynamic_axes: {ids: {1: length}}}\n"))
    assert recipe.export.dynamic_axes == {"ids": {"1": "length"}}
    assert recipe.model.inputs[0].axis is None
    again = load_recipe(write(tmp_path, recipe.to_yaml(), "resolved.yaml"))
    assert again.model_dump() == recipe.model_dump()


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("refit: {distill: 0.5}", "refit.distill contradicts task: distillation"),
        ("export: {dynamic_axes: {features: {1: a b}}}", "should be a plain name"),
    ],
)
def test_what_contradicts_distillation_is_refused(tmp_path, addition, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, UNLABELLED + addition + "\n"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("x.csv", "x.csv\n  classes: [a, b]", "data.classes contradicts task: distillation"),
        ("x.csv", "x.csv\n  split: {stratify: true}", "data.split: stratify needs classes"),
        ('build"', 'build", prediction: 0', "model.prediction contradicts task: distillation"),
        ("lambda: 1e-3", "max_drop: {metric: mae, amount: 1}", "use r2, rmse, cosine"),
    ],
)
def test_keys_of_labels_contradict_distillation(tmp_path, old, new, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, UNLABELLED.replace(old, new)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_a_wrong_recipe_is_refused_with_line_key_and_mend(tmp_path, old, new, message):
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}:")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "this is empty"),
        ("- a\n", "should be a mapping of keys, this is a list"),
        (b"task: \xff\xfe\n", ":1: not UTF-8"),
        ("a: " + "[" * 50 + "]" * 50, "nested deeper"),
        ("#" * 1_000_001, "at most 1,000,000"),
    ],
)
def test_files_that_are_no_recipe_are_refused(tmp_path, content, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, content))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(tmp_path)


def test_several_mistakes_say_how_many_more(tmp_path):
    text = GOOD.replace("lr: 1", "lr: x\n  epochs: y").replace("lambda", "lamda")
    with pytest.raises(RecipeError, match=r"\(and \d more\)"):
        load_recipe(write(tmp_path, text))


def test_overrides_change_keys_and_are_checked_alike(tmp_path):
    path = write(tmp_path, GOOD)
    recipe = load_recipe(path, ["train.lr=1e-2", "penalty.hidden.strength=0.5", "target={max_features: 3}"])
    assert (recipe.train.lr, recipe.penalty.hidden.strength, recipe.target.max_features) == (0.01, 0.5, 3)
    for override, message in [
        ("train.lrr=1", "--set train.lrr: train.lrr is not a key. Did you mean 'lr'?"),
        ("train.lr=x", "--set train.lr: train.lr should be a number"),
        ("train.lr", "write it as key=value"),
        ("train.lr=[", "--set train.lr"),
    ]:
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, [override])
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
