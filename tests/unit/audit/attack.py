"""One way to tamper with a bundle, as the tables of attacks list them."""

from collections.abc import Callable
from dataclasses import dataclass

from glprune.audit.verify import VerificationOptions, verify
from tests.bundle_fixtures import Copy, copied, follow, seal


@dataclass(frozen=True)
class Attack:
    """A change of a clean bundle and the check that must find it.

    Attributes:
        name: Plain description of the lie.
        base: Name of the clean bundle.
        change: Changes the copy.
        check: Id of the check that finds it where the producer seals the bundle anew.
        exit_code: Exit code of ``verify`` then.
        follows: Whether the producer can write report and page to match; False where the page is the lie.
    """

    name: str
    base: str
    change: Callable[[Copy], object]
    check: str
    exit_code: int = 1
    follows: bool = True


def verified(attack, audited, key, trust, place, sealed):
    """Make the attacked bundle, as it is or sealed anew, and verify it."""
    copy = copied(audited[attack.base], place)
    seal(copy, key)
    attack.change(copy)
    if sealed:
        if attack.follows:
            follow(copy)
        seal(copy, key)
    return verify(copy.folder, VerificationOptions(trust=trust), isolated=False)


def failed(verdict):
    return {c.id for c in verdict.checks if c.status == "failed"}


def told(verdict):
    return "\n".join(f"{c.id} {c.status} {c.note} {[str(f) for f in c.findings]}" for c in verdict.checks)
