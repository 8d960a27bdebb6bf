"""Run checks one after another, so that one that is stopped can be named, and the rest run without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from glprune.audit.findings import Check, Finding, UnreadableError, make_check
from glprune.schema import bundle as bundles

NO_MEMORY = "stopped: it needs more memory than any honest bundle of this size"


@dataclass(frozen=True)
class Steps:
    """The checks of one verification.

    Attributes:
        known: Results of checks that need not run.
        seconds: Time limit for running the model, in a process of its own; None runs it in this one.
        begin: Called with the id of a check, or with what is read, before it begins.
        done: Called with each result.
    """

    known: Mapping[str, Check] = field(default_factory=dict)
    seconds: float | None = None
    begin: Callable[[str], None] = lambda name: None
    done: Callable[[Check], None] = lambda check: None

    def run(self, check: str, compute: Callable[[], Check]) -> Check:
        """Run a check.

        An exception in it is a finding, since a report that contradicts itself can cause any.
        """
        [found] = self.run_all((check,), lambda: [compute()])
        return found

    def run_all(self, checks: Sequence[str], compute: Callable[[], list[Check]]) -> list[Check]:
        """Run checks that are made together, such as C9 and C10."""
        if all(check in self.known for check in checks):
            return [self.known[check] for check in checks]
        self.begin(checks[0])
        try:
            found = compute()
        except UnreadableError:
            raise
        except MemoryError:
            found = [Check(check, "incomplete", note=NO_MEMORY) for check in checks]
        except Exception as error:  # noqa: BLE001 - a hostile report must not end the audit
            what = f"is so inconsistent that the check cannot run ({type(error).__name__}: {error})"
            found = [make_check(check, [Finding(bundles.REPORT, "", what[:300])]) for check in checks]
        for check in found:
            self.done(check)
        return found
