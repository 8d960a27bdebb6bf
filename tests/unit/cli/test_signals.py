"""Signals end a command with an error that is never lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glprune.cli.signals import complete, interrupting_signals
from glprune.errors import SignalInterrupt, exit_code, is_written


class Dying:
    """Receives a signal where Python drops errors."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
@pytest.mark.parametrize("left", [0, 5])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_that_a_destructor_drops_ends_the_run(monkeypatch, capfd, number, code, left, processes):
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setenv("RANK", "0")
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}

    def work():
        with interrupting_signals():
            Dying(number)
            time.sleep(left)

    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            work()
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert exit_code(caught.value) == code
    assert capfd.readouterr().err == ""


def test_what_else_a_destructor_raises_is_shown_as_ever(monkeypatch):
    class Failing:
        def __del__(self):
            raise ValueError("of a destructor")

    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    with interrupting_signals():
        Failing()
    assert [str(dropped.exc_value) for dropped in heard] == ["of a destructor"]


def test_a_signal_after_a_complete_bundle_carries_its_place():
    with pytest.raises(SignalInterrupt) as caught, complete(Path("out")):
        signal.raise_signal(signal.SIGTERM)
    assert is_written(caught.value)
    assert caught.value.__notes__ == ["The bundle is written: out."]


ENDING = """
import atexit, os, signal, sys
from glprune.cli.main import main
atexit.register(lambda: (os.kill(os.getpid(), signal.SIGTERM), os.kill(os.getpid(), signal.SIGINT)))
main(["--version"])
"""


def test_a_signal_while_the_interpreter_ends_changes_nothing():
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
