"""Stability of feature selection: indices of a 0/1 matrix with a row for each choice."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Supports = NDArray[np.bool_]
CONFIDENCE = 0.95
_BLOCK = 256  # choices that are compared with all others at a time


@dataclass(frozen=True)
class Index:
    """A stability index with its confidence interval."""

    value: float
    low: float
    high: float


def jaccard(supports: Supports) -> float:
    """Compute the mean Jaccard index over all pairs of choices; two empty choices agree.

    The Jaccard index is the number of features in both choices, divided by those in either.

    Args:
        supports: Shape (n_choices, n_features), at least two choices.
    """
    kept = supports.astype(np.float32)
    sizes = kept.sum(axis=1, dtype=np.float64)
    total = 0.0
    for first in range(0, len(kept), _BLOCK):
        rows = slice(first, first + _BLOCK)
        both = (kept[rows] @ kept[first:].T).astype(np.float64)  # counts, exact below 2**24
        either = sizes[rows, None] + sizes[None, first:] - both
        shares = np.divide(both, either, out=np.ones_like(both), where=either > 0)
        total += float(np.triu(shares, 1).sum())
    return total / (len(kept) * (len(kept) - 1) / 2)


def nogueira(supports: Supports) -> Index | None:
    """Compute Nogueira's index: 1 for the same features every time, on average 0 for a random choice.

    With p_f the share of choices that keep feature f, ``1 - mean_f s_f^2 / (k/d (1 - k/d))``: s_f^2 is
    the unbiased variance of keeping f, k the mean number of features kept, of d.

    Args:
        supports: Shape (n_choices, n_features), at least two choices.

    Returns:
        The index and its confidence interval, from the asymptotic normal distribution and assuming
        independent choices; None where every choice keeps all features or none (0 / 0).

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
    shares = z.sum(axis=1) / features
    influence = (
        (z * share).mean(axis=1) - shares * mean + value / 2 * (2 * shares * mean - shares - mean + 1)
    ) / spread
    variance = 4 / choices**2 * float(((influence - influence.mean()) ** 2).sum())
    reach = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * variance**0.5
    return Index(value, value - reach, value + reach)


def false_bound(supports: Supports, threshold: float) -> float | None:
    """Bound the expected number of irrelevant features kept in at least ``threshold`` of the halves.

    ``q^2 / ((2 threshold - 1) d)``, with q the mean number of features kept, of d. It assumes that each
    choice was made on a random half of the rows, that irrelevant features are equally likely to be kept
    and that they are kept no more often than by chance. With complementary halves the last two assumptions
    are not needed for features kept with probability at most q / d.

    Args:
        supports: Shape (n_choices, n_features).
        threshold: Above 0.5.

    Returns:
        The bound; None where it is not below the number of features kept that often, so says nothing.

    References:
        Meinshausen and Buehlmann (2010), J. R. Stat. Soc. B 72(4), 417-473, theorem 1; Shah and
        Samworth (2013), J. R. Stat. Soc. B 75(1), 55-80, theorem 1.
    """
    kept = float(supports.sum(axis=1).mean())
    bound = kept**2 / ((2 * threshold - 1) * supports.shape[1])
    return bound if bound < stable(supports, threshold) else None


def stable(supports: Supports, threshold: float) -> int:
    """Count the features kept in at least ``threshold`` of the choices."""
    return int((supports.sum(axis=0) >= threshold * len(supports) - 1e-9).sum())
