"""Run from a bundle again: ship another point of its frontier, or reproduce it.

- ``selection``: another point of the frontier, without searching again.
- ``reproduction``: the whole run, and the comparison with the bundle.
- ``consent``: whether the code that the bundle names may run.
"""

from __future__ import annotations
