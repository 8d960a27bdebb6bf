"""The peers, a small function each: they take a problem and emit features for each k."""

from __future__ import annotations

import collections
import contextlib
import copy
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from answers import Answer, Clock, Emit, Method, Problem
from dataset import DataSet
from network import build, epochs, loss
from sklearn.linear_model import LogisticRegression, lasso_path
from sklearn.svm import l1_min_c
from torch import Tensor, nn

REPEATS = 5  # of a permutation
STG_LAMBDAS, STG_EPOCHS = (0.1, 1.0, 10.0, 100.0), 3000  # the first is its README's
TP_REGS, TP_EPOCHS = (1e-4, 1e-3, 1e-2), 50  # the first is its default
FOLDS = 5  # of LassoNet's cross-validation, its default
SHARE_LEFT, BACKWARD_EPOCHS = 0.75, 5

Predict = Callable[[np.ndarray], np.ndarray]


class _Enough(Exception):  # noqa: N818 - ends LassoNet's path from inside its callback
    """The last number of features has its answer."""


def lassonet(problem: Problem, emit: Emit) -> None:
    """LassoNet's path with its defaults and the set's hidden layers; at each k its own model as well.

    An answer is the first point of the path with at most k features. Where the path jumps to no feature
    at all, it is the k features of the point before with the largest weights in the skip layer.
    """
    from lassonet import LassoNetClassifier, LassoNetRegressor

    data, todo, last = problem.data, sorted(problem.data.ks), np.zeros(len(problem.data.features))
    kind = LassoNetRegressor if data.task == "regression" else LassoNetClassifier
    made = kind(**_lassonet_settings(problem))
    clock = Clock()

    def watch(model: Any, _: object) -> None:
        nonlocal last
        norms = by_feature(data, (model.model.skip.weight.detach().numpy() ** 2).sum(0))
        now = np.flatnonzero(norms)
        while todo and len(now) <= todo[-1]:
            k, seconds = todo.pop(), clock()
            if len(now):
                own = both(data, model.predict if data.task == "regression" else model.predict_proba)
                emit(Answer(k, tuple(now.tolist()), seconds, own))
            else:
                emit(Answer(k, top(last, k), seconds))
        last = norms
        if not todo:
            raise _Enough

    with contextlib.suppress(_Enough):
        made.path(data.train.x, data.train.y, X_val=data.valid.x, y_val=data.valid.y, callback=watch)


def lassonet_cv(problem: Problem, emit: Emit) -> None:
    """LassoNet's own cross-validation: of the points with at most k features the one it scores highest.

    It chooses a strength without regard to k and ends its last path there. So that path is made once more
    to the end, over training and validation rows as before, and the choice is made within each k.
    Where no point has between 1 and k features, the answer is as in `lassonet`. Its model has seen the
    validation rows, so that only its features count. Rows are shuffled and classes stratified: the
    default folds are runs of neighbouring rows, of one class in many files.
    """
    from lassonet import LassoNetClassifier, LassoNetClassifierCV, LassoNetRegressor, LassoNetRegressorCV
    from sklearn.model_selection import KFold, StratifiedKFold

    data = problem.data
    regression = data.task == "regression"
    folds = (KFold if regression else StratifiedKFold)(FOLDS, shuffle=True, random_state=problem.seed)
    model = (LassoNetRegressorCV if regression else LassoNetClassifierCV)(
        cv=folds, **_lassonet_settings(problem)
    )
    x = np.concatenate([data.train.x, data.valid.x])
    y = np.concatenate([data.train.y, data.valid.y])
    clock, norms = Clock(), []

    def watch(now: Any, _: object) -> None:
        norms.append(by_feature(data, (now.model.skip.weight.detach().numpy() ** 2).sum(0)))

    model.path(x, y, return_state_dicts=False)
    plain = LassoNetRegressor if regression else LassoNetClassifier
    plain.path(model, x, y, lambda_seq=model.lambdas_, callback=watch)
    scores = model.interp_scores_.mean(axis=1)
    points = [(n, score) for n, score in zip(norms[1:], scores, strict=False) if n.any()]  # [0] is dense
    for k in data.ks:
        small = [(score, n) for n, score in points if np.count_nonzero(n) <= k]
        chosen = max(small, key=lambda point: point[0])[1] if small else points[-1][0]
        emit(Answer(k, top(chosen, min(k, np.count_nonzero(chosen))), clock()))


def _lassonet_settings(problem: Problem) -> dict[str, Any]:
    """Its defaults, with the set's hidden layers, and `groups` for features of several columns."""
    data = problem.data
    grouped = any(len(columns) > 1 for _, columns in data.features)
    return {
        "hidden_dims": data.hidden,
        "groups": [list(columns) for _, columns in data.features] if grouped else None,
        "verbose": 0,
        "torch_seed": problem.seed,
        "random_state": problem.seed,
    }


def stochastic_gates(problem: Problem, emit: Emit) -> None:
    """STG with its README's settings at four strengths; features by the summed probability of open gates.

    Its own model counts where the gates of at most k features are open. Its penalty is a mean over gates,
    so that one strength means something else for every width: hence several.
    """
    _fill_in_for_stg()
    from stg import STG

    data = problem.data
    regression = data.task == "regression"
    rows, columns = data.train.x.shape
    train_y = data.train.y[:, None] if regression else data.train.y
    clock = Clock()
    for strength in STG_LAMBDAS:
        torch.manual_seed(problem.seed)
        model = STG(
            task_type="regression" if regression else "classification",
            input_dim=columns,
            output_dim=max(2, data.outputs) if not regression else 1,
            hidden_dims=list(data.hidden),
            activation="tanh",
            optimizer="SGD",
            learning_rate=0.1,
            batch_size=rows,
            feature_selection=True,
            sigma=0.5,
            lam=strength,
            random_state=problem.seed,
            device="cpu",
        )
        model.fit(data.train.x, train_y, nr_epochs=STG_EPOCHS, verbose=False)
        gates = torch.from_numpy(model.get_gates("raw") + 0.5)
        importance = by_feature(data, torch.special.ndtr(gates / 0.5).numpy())
        opened = np.flatnonzero(by_feature(data, (gates > 0).numpy()))
        own = both(data, _stg_predict(model, regression))
        for k in data.ks:
            emit(Answer(k, top(importance, k), clock()))
            if 0 < len(opened) <= k:
                emit(Answer(k, tuple(opened.tolist()), clock(), own))


def _stg_predict(model: Any, regression: bool) -> Predict:
    """STG's probabilities; its predict() gives classes only."""

    def predict(x: np.ndarray) -> np.ndarray:
        model._model.eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model._model({"input": torch.from_numpy(x)})["pred" if regression else "prob"].numpy()

    return predict


def _fill_in_for_stg() -> None:
    """What stg 0.1.2 needs on today's Python.

    It asks `collections` for names that moved to `collections.abc` and left in Python 3.10, and it
    imports packages this use never calls (Python 2 names, HDF5, survival): empty modules where missing.
    """
    for name in ("Sequence", "Mapping", "Set"):
        setattr(collections, name, getattr(collections.abc, name))
    for name, content in {
        "six": {"string_types": (str,)},
        "h5py": {},
        "lifelines": {},
        "lifelines.utils": {"concordance_index": None},
    }.items():
        if name.partition(".")[0] not in sys.modules and importlib.util.find_spec(name.partition(".")[0]):
            continue
        module = types.ModuleType(name)
        module.__dict__.update(content)
        sys.modules[name] = module


class _Gate(nn.Module):
    """A factor of one on every column: the node torch-pruning's graph lacks for the input."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(columns))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def sparse_training(problem: Problem, emit: Emit) -> None:
    """torch-pruning: its GroupNormPruner's sparse training, then its group importance of input columns.

    The trained network goes on behind a gate, with SGD as in torch-pruning's examples and
    `regularize` before each step; three strengths, each answering every k. It only shrinks: no column
    becomes zero, so there is no model of its own.
    """
    import torch_pruning as tp

    class GatePruner(tp.pruner.function.BasePruningFunc):
        def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
            return layer

        prune_in_channels = prune_out_channels

        def get_out_channels(self, layer: Any) -> int:
            return layer.weight.numel()

        get_in_channels = get_out_channels

    data = problem.data
    x, y = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)
    clock = Clock()
    for strength in TP_REGS:
        torch.manual_seed(problem.seed)
        network = nn.Sequential(_Gate(x.shape[1]), copy.deepcopy(problem.network))
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        pruner = tp.pruner.GroupNormPruner(
            network,
            x[:2],
            importance,
            reg=strength,
            root_module_types=[_Gate],
            customized_pruners={_Gate: GatePruner()},
        )
        network.train()
        optimizer = torch.optim.SGD(network[1].parameters(), lr=0.01, momentum=0.9)
        for _ in range(TP_EPOCHS):
            for rows in torch.randperm(len(x)).split(data.batch):
                optimizer.zero_grad()
                loss(network(x[rows]), y[rows], data.task).backward()
                pruner.regularize(network)
                optimizer.step()
        (group,) = pruner.DG.get_all_groups(root_module_types=[_Gate])
        rank(problem, emit, by_feature(data, importance(group).numpy()), clock)


def linear(problem: Problem, emit: Emit) -> None:
    """The densest point of at most k features on the path of an L1 penalty, in a linear model.

    Logistic regression (L1 on each column; several classes: multinomial) or the Lasso, from
    scikit-learn; the linear model counts as its own.
    """
    data, todo = problem.data, sorted(problem.data.ks, reverse=True)
    clock, best = Clock(), None
    for coefficients, predict in _lasso(data) if data.task == "regression" else _logistic(data, problem.seed):
        features = tuple(np.flatnonzero(by_feature(data, np.abs(coefficients).sum(0))).tolist())
        while todo and len(features) > todo[-1]:
            k = todo.pop()
            if best is not None:
                emit(Answer(k, *best))
        if not todo:
            return
        if features:
            best = features, clock(), both(data, predict)
    for k in todo:
        if best is not None:
            emit(Answer(k, *best))


def _logistic(data: DataSet, seed: int) -> Iterator[tuple[np.ndarray, Predict]]:
    warnings.filterwarnings("ignore")  # points that did not converge within max_iter
    model = LogisticRegression(
        l1_ratio=1.0, solver="saga", tol=1e-3, max_iter=300, warm_start=True, random_state=seed
    )
    model.C = float(l1_min_c(data.train.x, data.train.y, loss="log"))
    for _ in range(80):
        model.C *= 1.1
        model.fit(data.train.x, data.train.y)
        yield model.coef_, model.predict_proba


def _lasso(data: DataSet) -> Iterator[tuple[np.ndarray, Predict]]:
    _, coefficients, _ = lasso_path(data.train.x, data.train.y)  # both centred on the training rows
    for w in coefficients.T:
        yield w[None], lambda x, w=w: x @ w


def at_random(problem: Problem, emit: Emit) -> None:
    """Features drawn at random."""
    clock = Clock()
    rank(problem, emit, np.random.default_rng(problem.seed).random(len(problem.data.features)), clock)


def magnitude(problem: Problem, emit: Emit) -> None:
    """Norm of a feature's weights in the first layer of the trained network (columns are standardised)."""
    clock = Clock()
    weight = first_weight(problem).numpy()
    rank(problem, emit, by_feature(problem.data, (weight**2).sum(0)), clock)


def permutation(problem: Problem, emit: Emit) -> None:
    """Rise of the validation loss when a feature's columns are shuffled together, mean of 5 shuffles."""
    clock, generator = Clock(), torch.Generator().manual_seed(problem.seed)
    everything = range(len(problem.data.features))
    rank(problem, emit, loss_rise(problem.network, problem.data, everything, generator), clock)


def backward(problem: Problem, emit: Emit) -> None:
    """Backward elimination by permutation importance: a quarter goes, five epochs of refit, and again.

    Every k is stopped at on the way, so that one run answers all of them.
    """
    data, todo, clock = problem.data, sorted(problem.data.ks), Clock()
    generator = torch.Generator().manual_seed(problem.seed)
    network, kept = problem.network, list(range(len(data.features)))
    while todo:
        rise = loss_rise(network, data, kept, generator)
        count = max(todo[-1], min(len(kept) - 1, int(len(kept) * SHARE_LEFT)))
        left = [kept[i] for i in top(rise, count)]
        if count == todo[-1]:
            emit(Answer(todo.pop(), tuple(left), clock()))
        network, kept = narrowed(network, data, kept, left), left
        for _ in epochs(network, data, data.columns(kept), problem.seed, BACKWARD_EPOCHS):
            pass
        network.eval()


def narrowed(network: nn.Module, data: DataSet, kept: Sequence[int], left: Sequence[int]) -> nn.Module:
    """A copy of a network over the kept features' columns that reads those of the left ones only."""
    columns, stay = data.columns(kept), set(data.columns(left))
    state = dict(network.state_dict())
    state["0.weight"] = state["0.weight"][:, [i for i, column in enumerate(columns) if column in stay]]
    narrow = build(len(stay), data.hidden, data.outputs)
    narrow.load_state_dict(state)
    return narrow


def loss_rise(
    network: nn.Module, data: DataSet, kept: Sequence[int], generator: torch.Generator
) -> np.ndarray:
    """Rise of the validation loss, summed over 5 shuffles of each kept feature's columns together.

    The first layer is linear, so what a shuffle changes is added to its sums: the same figure, sooner.
    """
    columns = {column: i for i, column in enumerate(data.columns(kept))}
    x, y = torch.from_numpy(data.valid.x[:, list(columns)]), torch.from_numpy(data.valid.y)
    first, rest = network[0], network[1:]
    rise = np.zeros(len(kept))
    with torch.no_grad():
        sums = first(x)
        for i, feature in enumerate(kept):
            own = [columns[column] for column in data.features[feature][1]]
            part, weight = x[:, own], first.weight[:, own].T
            for _ in range(REPEATS):
                shuffled = part[torch.randperm(len(x), generator=generator)]
                rise[i] += float(loss(rest(sums + (shuffled - part) @ weight), y, data.task))
    return rise


def gradients(problem: Problem, emit: Emit) -> None:
    """captum: integrated gradients and GradientSHAP of the validation rows' outputs, two candidates.

    Integrated gradients start from the mean row, GradientSHAP from training rows. The output is the logit
    of the row's own class (or the value); a feature's columns are added up, then the mean of the
    magnitudes over the rows ranks it.
    """
    from captum.attr import GradientShap, IntegratedGradients

    data, clock = problem.data, Clock()
    x, labels = torch.from_numpy(data.valid.x), torch.from_numpy(data.valid.y)
    target = labels if data.task == "multiclass" else 0
    torch.manual_seed(problem.seed)
    np.random.seed(problem.seed)  # GradientSHAP draws from the global generator
    smooth = GradientShap(problem.network)
    for attributions in (
        IntegratedGradients(problem.network).attribute(x, target=target, internal_batch_size=4096),
        smooth.attribute(x, torch.from_numpy(data.train.x), n_samples=20, target=target),
    ):
        found = attributions.detach().numpy()
        parts = [np.abs(found[:, list(columns)].sum(1)).mean() for _, columns in data.features]
        rank(problem, emit, np.array(parts), clock)


def rank(problem: Problem, emit: Emit, importance: np.ndarray, clock: Clock) -> None:
    """Answer each k with its most important features."""
    for k in problem.data.ks:
        emit(Answer(k, top(importance, k), clock()))


def top(importance: np.ndarray, k: int) -> tuple[int, ...]:
    """The k most important features."""
    return tuple(sorted(np.argsort(-importance, kind="stable")[:k].tolist()))


def both(data: DataSet, predict: Predict) -> tuple[np.ndarray, np.ndarray]:
    """Predictions on the validation and test split; of two classes the second's probability."""
    valid, test = (np.asarray(predict(split.x)) for split in (data.valid, data.test))
    if data.task == "multiclass":
        return valid, test
    return valid.reshape(len(valid), -1)[:, -1], test.reshape(len(test), -1)[:, -1]


def by_feature(data: DataSet, importance: np.ndarray) -> np.ndarray:
    """The sum of an importance of columns over each feature's columns."""
    return np.array([importance[list(columns)].sum() for _, columns in data.features])


def first_weight(problem: Problem) -> Tensor:
    """Weights of the first layer, (hidden, columns)."""
    return problem.network[0].weight.detach()


PEERS: dict[str, Method] = {
    "lassonet": lassonet,
    "lassonet-cv": lassonet_cv,
    "stg": stochastic_gates,
    "torch-pruning": sparse_training,
    "backward": backward,
    "captum": gradients,
    "l1": linear,
    "permutation": permutation,
    "magnitude": magnitude,
    "random": at_random,
}
