"""Rows are assigned to the segments of a report as the run assigned them."""

import numpy as np
import pytest

from glprune.tables.protected import Attribute, assigned, segmented

NUMBERS = {
    "few": [0.0, 1.0, 2.0, 1.0, 0.0, 2.0, 2.0, 1.0],
    "with missing": [0.0, 1.0, np.nan, 1.0, 0.0, 2.0, np.nan, 1.0],
    "many": list(np.linspace(-3, 90.5, 8)),
    "large": [1234567.5, 1234567.25, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "look alike": [0.1, 0.1 + 1e-12, 0.3, 0.3, 0.1, 0.3, 0.1, 0.3],
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("bins", [None, [0.5, 2.0]])
def test_numbers_fall_into_the_segments_of_the_run(name, bins):
    values = np.array(NUMBERS[name])
    attribute = Attribute("age", {"train": values, "valid": values, "test": values[::-1]}, ("age",))
    found = segmented(attribute, bins)
    assert assigned(attribute, found.labels, found.edges).tolist() == found.number["test"].tolist()
    assert (found.edges is None) == (found.by == "values")


def test_texts_fall_into_the_segments_of_the_run_and_unknown_ones_into_none():
    values = np.array([0, 1, 1, 0])
    attribute = Attribute("kind", {"train": values, "valid": values, "test": values}, ("kind",), ("f", "m"))
    assert assigned(attribute, segmented(attribute, None).labels, None).tolist() == [0, 1, 1, 0]
    assert assigned(attribute, ("m", "other"), None).tolist() == [-1, 0, 0, -1]


def test_a_number_without_a_segment_has_none():
    attribute = Attribute("age", {"test": np.array([0.0, 7.0, np.nan])}, ("age",))
    assert assigned(attribute, ("0", "1"), None).tolist() == [0, -1, -1]
