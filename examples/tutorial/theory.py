"""Least squares with a group LASSO penalty, small enough to read: accelerated proximal gradient steps.

Minimises ``||y - x w||^2 / (2 n) + lam * sum over groups of sqrt(size) * ||w_group||``.
"""

import numpy as np
import torch

from glprune.training.penalties import block_soft_threshold


def fit(x, y, groups, lam, steps=4000):
    """The minimiser, shape (n_features,); groups: the number of each feature's group."""
    n, p = x.shape
    sizes = np.bincount(groups)
    step = n / np.linalg.norm(x, 2) ** 2
    threshold = torch.from_numpy(step * lam * np.sqrt(sizes))
    w, ahead, t = np.zeros(p), np.zeros(p), 1.0
    for _ in range(steps):
        moved = ahead - step * x.T @ (x @ ahead - y) / n
        norms = np.sqrt(np.bincount(groups, moved**2))
        shrunk = block_soft_threshold(torch.from_numpy(norms), threshold).numpy()
        new = moved * (shrunk / np.maximum(norms, 1e-300))[groups]
        following = (1 + np.sqrt(1 + 4 * t * t)) / 2
        w, ahead, t = new, new + (t - 1) / following * (new - w), following
    return w


def largest_lambda(x, y, groups):
    """The lambda from which on everything is zero."""
    gradient = x.T @ y / len(y)
    return float((np.sqrt(np.bincount(groups, gradient**2)) / np.sqrt(np.bincount(groups))).max())


def problem(rows=200, seed=0):
    """Twelve features in four groups of three; three of the first and one of the second matter."""
    rng = np.random.default_rng(seed)
    common = np.repeat(rng.normal(size=(rows, 4)), 3, axis=1)
    x = 0.6 * common + 0.8 * rng.normal(size=(rows, 12))
    truth = np.array([1.0, -0.8, 0.6, 1.2, 0, 0, 0, 0, 0, 0, 0, 0])
    return x, x @ truth + rng.normal(size=rows), truth
