"""How alike several choices of features are: figures of a 0/1 matrix, one row a choice, one column a feature."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Supports = NDArray[np.bool_]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Index:
    """A stability index with its confidence interval."""

    value: float
    low: float
    high: float


def jaccard(supports: Supports) -> float:
    """Mean over all pairs of choices of what both keep over what either keeps; two empty ones agree.

    Args:
        supports: Shape (n_choices, n_features), at least two choices.
    """
    kept = supports.astype(np.float64)
    both = kept @ kept.T
    sizes = kept.sum(axis=1)
    either = sizes[:, None] + sizes[None, :] - both
    shares = np.divide(both, either, out=np.ones_like(both), where=either > 0)
    return float(shares[np.triu_indices(len(kept), 1)].mean())


def nogueira(supports: Supports) -> Index | None:
    """Nogueira's index: 1 for the same features every time, 0 on average for features drawn at random.

    With p_f the share of choices that keep feature f, ``1 - mean_f s_f^2 / (k/d (1 - k/d))``: s_f^2 is
    the unbiased variance of keeping f, k the mean number kept of d features.

    Args:
        supports: Shape (n_choices, n_features), at least two choices.

    Returns:
        The index and the interval that its asymptotic normal distribution gives, the choices taken
        as independent; None where every choice keeps all features or none, and the index is 0 / 0.

    References:
        Nogueira, Sechidis and Brown (2018), "On the stability of feature selection algorithms",
        JMLR 18(174), definition 4 and corollary 9.
    """
    z = supports.astype(np.float64)
    choices, features = z.shape
    share, mean = z.mean(axis=0), z.sum(axis=1).mean() / features
    if mean in (0.0, 1.0):
        return None
    spread = mean * (1 - mean)
    value = 1 - choices / (choices - 1) * float((share * (1 - share)).mean()) / spread
    own = z.sum(axis=1) / features
    influence = (
        (z * share).mean(axis=1) - own * mean + value / 2 * (2 * own * mean - own - mean + 1)
    ) / spread
    variance = 4 / choices**2 * float(((influence - influence.mean()) ** 2).sum())
    reach = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * variance**0.5
    return Index(value, value - reach, value + reach)


def false_bound(supports: Supports, threshold: float) -> float | None:
    """Bound on the expected number of features kept falsely in at least ``threshold`` of the halves.

    ``q^2 / ((2 threshold - 1) d)``, q the mean number kept of d features. It holds where each choice was
    made from a random half of the rows, where the features that matter for nothing are equally likely to
    be kept and where they are kept no more often than by guessing. With complementary halves it holds
    without the last two for the features kept with probability at most q / d.

    Args:
        supports: Shape (n_choices, n_features).
        threshold: Above 0.5.

    Returns:
        The bound; None where it says nothing: it is not below the number of features kept that often.

    References:
        Meinshausen and Buehlmann (2010), J. R. Stat. Soc. B 72(4), 417-473, theorem 1; Shah and
        Samworth (2013), J. R. Stat. Soc. B 75(1), 55-80, theorem 1.
    """
    kept = float(supports.sum(axis=1).mean())
    bound = kept**2 / ((2 * threshold - 1) * supports.shape[1])
    return bound if bound < stable(supports, threshold) else None


def stable(supports: Supports, threshold: float) -> int:
    """Number of features kept in at least ``threshold`` of the choices."""
    return int((supports.sum(axis=0) >= threshold * len(supports) - 1e-9).sum())
