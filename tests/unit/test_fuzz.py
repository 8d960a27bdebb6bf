"""Recipes and reports changed at random, and odd code of users, the same ones in every session.

``GLPRUNE_FUZZ=20`` tries twenty times as many, and others each time; ``tests/fuzz.py`` goes on with coverage
guidance. 2,000 cases of odd code, ``GLPRUNE_FUZZ=100`` with ``-k odd_code``, take a quarter of an hour.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glprune.schema import bundle as bundles
from tests import mutations, odd_code

TIMES = int(os.environ.get("GLPRUNE_FUZZ", "1"))
ANSWERS = st.lists(st.integers(0, 2**16 - 1), min_size=8, max_size=48)


def examples(number: int) -> Callable:
    return settings(
        max_examples=number * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def chooser(answers: Sequence[int]) -> mutations.Choose:
    """These answers, then zeros."""
    left = iter(answers)
    return lambda n: next(left, 0) % n


@pytest.fixture(scope="module")
def bundle(audited, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed") / "bundle"
    shutil.copytree(audited["slim"], folder)
    return folder


def test_recipes_changed_at_random_are_refused_or_say_the_same_again(tmp_path):
    read = Counter()

    @examples(300)
    @given(ANSWERS)
    def run(answers):
        read[mutations.check_recipe(mutations.recipe_text(chooser(answers)), tmp_path)] += 1

    run()
    assert min(read[True], read[False]) > 20


def test_bytes_at_random_are_no_recipe(tmp_path):
    @examples(200)
    @given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
    def run(raw):
        assert not mutations.check_recipe(raw, tmp_path)

    run()


def test_reports_changed_at_random_are_refused_or_told(bundle):
    base, read = (bundle / bundles.REPORT).read_bytes(), Counter()

    @examples(150)
    @given(ANSWERS)
    def run(answers):
        read[mutations.check_report(mutations.report_text(base, chooser(answers)), bundle)] += 1

    run()
    (bundle / bundles.REPORT).write_bytes(base)
    assert min(read[True], read[False]) > 20


def test_odd_code_of_users_ends_in_a_bundle_or_in_one_line(tmp_path):
    codes = Counter()
    for seed in range(20 * TIMES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        odd_code.write_weights(folder / "model.pt")
        draw = random.Random(seed)
        codes[odd_code.check(*odd_code.make(draw.randrange), folder)] += 1
        shutil.rmtree(folder)
    print(f"{codes.total()} cases: {dict(sorted(codes.items()))}")
    assert codes[0] > 1
    assert codes[3] > 4
    assert codes[4] > 1
    assert set(codes) <= {0, 2, 3, 4, 5}
