"""The portfolio: several sets of features of the target's size, of which the best on validation rows is kept.

``folds`` makes the rows on which they are compared, ``elimination`` and ``candidates`` find and score them,
``competition`` chooses. ``frontier`` holds the networks of several sizes.
"""

from glprune.search.portfolio.candidates import Candidate
from glprune.search.portfolio.competition import Competition, compete
from glprune.search.portfolio.folds import fold_count
from glprune.search.portfolio.frontier import (
    FrontierPoint,
    best_point,
    frontier_sizes,
    shipped_point,
    shipping_rule,
)

__all__ = [
    "Candidate",
    "Competition",
    "FrontierPoint",
    "best_point",
    "compete",
    "fold_count",
    "frontier_sizes",
    "shipped_point",
    "shipping_rule",
]
