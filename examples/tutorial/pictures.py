"""Draw the pictures of the page of concepts from real runs: python -m examples.tutorial.pictures BUNDLE."""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import glprune
from examples.tutorial.theory import fit, largest_lambda, problem

IMAGES = Path(__file__).parents[2] / "docs" / "pages" / "images"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8a9097")


def balls():
    """Where the penalised minimum of two weights lies: at a corner, or on a circle."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(100, 2))
    y = x @ np.array([1.2, 0.3])
    figure = Figure(figsize=(8.4, 4.0))
    grid = np.linspace(-0.9, 1.6, 240)
    a, b = np.meshgrid(grid, grid)
    loss = ((y[:, None] - x @ np.stack([a.ravel(), b.ravel()])) ** 2).mean(0).reshape(a.shape) / 2
    for place, (groups, name) in enumerate(
        (([0, 1], "groups of one: LASSO"), ([0, 0], "one group: L2 norm")), 1
    ):
        groups = np.array(groups)
        w = fit(x, y, groups, 0.45 / np.sqrt(np.bincount(groups))[0])
        size = np.abs(a) + np.abs(b) if place == 1 else np.hypot(a, b)
        limit = np.abs(w).sum() if place == 1 else np.hypot(*w)
        axes = figure.add_subplot(1, 2, place)
        axes.contour(a, b, loss, levels=8, colors="#b8bec4", linewidths=0.8)
        axes.contourf(a, b, size, levels=[0, limit], colors=[COLOURS[0]], alpha=0.25)
        axes.plot(1.2, 0.3, "x", color="#3a3f44")
        axes.annotate("least squares", (1.2, 0.3), (1.0, 0.45), fontsize=8)
        axes.plot(*w, "o", color=COLOURS[1])
        axes.annotate(
            f"({w[0]:.2f}, {w[1]:.2f})", w, w + np.array([-0.15, 0.16]), fontsize=9, color=COLOURS[1]
        )
        axes.axhline(0, color="#dfe3e7", zorder=0)
        axes.axvline(0, color="#dfe3e7", zorder=0)
        axes.set(title=name, xlabel="weight 1", ylabel="weight 2", aspect="equal")
    return figure


def limits():
    """The same problem along lambda, with groups of one, of three, and all in one."""
    x, y, _ = problem()
    figure = Figure(figsize=(10, 3.6))
    kinds = {
        "groups of one: LASSO": np.arange(12),
        "groups of three: group LASSO": np.arange(12) // 3,
        "one group: all or nothing": np.zeros(12, dtype=int),
    }
    for place, (name, groups) in enumerate(kinds.items(), 1):
        shares = np.linspace(0.02, 1.05, 40)
        path = np.array([fit(x, y, groups, s * largest_lambda(x, y, groups), 1500) for s in shares])
        axes = figure.add_subplot(1, 3, place)
        for feature in range(12):
            axes.plot(shares, path[:, feature], color=COLOURS[feature // 3], linewidth=1.2)
        axes.axhline(0, color="#dfe3e7", zorder=0)
        axes.set(title=name, xlabel="lambda / largest lambda", ylim=(-1.0, 1.35))
        if place == 1:
            axes.set_ylabel("weight (colour: group)")
    return figure


def main(bundle):
    """Write every picture into the documentation."""
    result = glprune.Result.load(bundle)
    pictures = {
        "balls": balls(),
        "limits": limits(),
        "credit_path": result.plot_path(),
        "credit_metric": result.plot_metric(),
    }
    for name, figure in pictures.items():
        figure.set_layout_engine("tight")
        figure.savefig(IMAGES / f"{name}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(sys.argv[1])
