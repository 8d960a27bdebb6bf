"""Work in other processes: order, errors, a process that dies, a script without a guard."""

import functools
import operator
import os
import subprocess
import sys

import pytest

from glprune.errors import GlpruneError
from glprune.workers import Workers

SCRIPT = """
import functools, operator
from glprune.workers import Workers
print("begun")
with Workers(functools.partial(int, 12), 2) as workers:
    print(workers.map(operator.floordiv, [4, 1, 3], lambda place, outcome: None))
    print(workers.map(operator.add, [0, 1], lambda place, outcome: None))
"""


def test_a_script_without_a_main_guard_is_not_run_again_and_outcomes_keep_their_order(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["begun", "[3, 12, 4]", "[12, 13]"]
    assert done.stderr == ""


def test_an_error_stops_the_work_and_reaches_the_caller():
    told = []
    with pytest.raises(ZeroDivisionError), Workers(functools.partial(int, 12), 1) as workers:
        workers.map(operator.floordiv, [1, 0, *[1] * 50], lambda place, outcome: told.append(outcome))
    assert told in ([12], [])


def test_a_process_that_dies_is_told_in_one_line():
    with (
        pytest.raises(GlpruneError, match=r"killed.*stability\.processes") as caught,
        Workers(functools.partial(os._exit, 9), 1) as workers,
    ):
        workers.map(operator.add, [1], lambda place, outcome: None)
    assert "\n" not in str(caught.value)
