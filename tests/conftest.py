"""One line at the end of a session about the random networks that were run."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    try:
        from tests.generated import TALLY
    except ImportError:  # a session that collected nothing from here
        return
    if TALLY.cases:
        terminalreporter.write_line(TALLY.line())
