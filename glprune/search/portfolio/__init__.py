"""The portfolio: several sets of features of the target's size, of which the best on validation rows is kept.

``folds`` makes the rows on which they are compared, ``elimination`` and ``candidates`` find and score them,
``competition`` chooses. ``frontier`` holds the networks of several sizes.
"""
