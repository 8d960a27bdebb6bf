"""Packages of the ``integration`` extra: a test that needs one skips without it and names it.

With ``GLPRUNE_NO_SKIPS`` set, as in ``.ci/run``, which installs all of them, it fails instead.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import NoReturn

import pytest


def need(module: str) -> ModuleType:
    """Import an optional module; skip the test, or the test file, that has to do without it."""
    try:
        return pytest.importorskip(module, reason=f"{module} is not installed (extra: integration)")
    except pytest.skip.Exception as skipped:
        reason = str(skipped)
    missing(reason)


def missing(reason: str) -> NoReturn:
    """Skip a test because something is not installed."""
    if os.environ.get("GLPRUNE_NO_SKIPS"):
        pytest.fail(f"{reason}, and GLPRUNE_NO_SKIPS is set", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
