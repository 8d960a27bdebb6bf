"""The groups of a network that lost features, and the sets that a penalty on overlapping groups could keep."""

import pytest

from glprune.schema.recipe import PenaltySpec
from glprune.training.feature_groups import remaining_groups, whole_groups

FEATURES = ["a", "b", "c", "d", "e", "f", "g"]
GROUPS = {"left": ["a", "b", "c"], "middle": ["c", "d"], "right": ["d", "e", "f"]}
LATENT = PenaltySpec.model_validate({"kind": "latent_group_lasso", "groups": GROUPS})
TREE = PenaltySpec.model_validate(
    {"kind": "tree_group_lasso", "groups": {"left": ["a", "b"], "all": ["left", "c"]}}
)


@pytest.mark.parametrize(
    ("kept", "whole"),
    [
        ("abc", "abc"),
        ("abcd", "abcd"),
        ("ab", ""),
        ("acdf", "cd"),
        ("defg", "defg"),
        ("adg", "g"),
        ("abcdefg", "abcdefg"),
    ],
)
def test_of_a_set_the_whole_groups_and_free_features_can_be_kept(kept, whole):
    assert whole_groups(LATENT, FEATURES, kept) == set(whole)


def test_nested_groups_allow_every_set():
    assert whole_groups(TREE, FEATURES, "ac") == {"a", "c"}


def test_a_group_that_left_does_not_come_back_as_a_part():
    left = ["c", "d", "g"]  # left and right went
    assert remaining_groups(LATENT, FEATURES, left) == {"middle": ["c", "d"]}


def test_a_group_whose_rest_no_other_holds_stays():
    left = ["b", "c", "d"]  # a rule removed a
    assert remaining_groups(LATENT, FEATURES, left) == {"left": ["b", "c"], "middle": ["c", "d"]}


def test_nested_groups_lose_single_features():
    assert remaining_groups(TREE, FEATURES, ["b", "c"]) == {"left": ["b"], "all": ["b", "c"]}
