"""C3 and C13: which keys the auditor trusts, in which roles, and whether one person could be two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import SSlibKey

from glprune._wording import counted
from glprune.audit.findings import Check, Finding, make_check
from glprune.audit.signing import PRODUCER, Signature, check_role, instant, read_public_key
from glprune.errors import UsageError
from glprune.schema import bundle as bundles

CLOCK_TOLERANCE = timedelta(days=1)
"""How far the clock of a signer may be ahead."""


@dataclass(frozen=True)
class Stamp:
    """What the check of a timestamp found.

    Attributes:
        findings: Errors.
        note: Who stamped the manifest and when; empty where no timestamp was verified.
        unchecked: Why a timestamp could not be checked; empty otherwise.
    """

    findings: Sequence[Finding] = ()
    note: str = ""
    unchecked: str = ""


@dataclass(frozen=True)
class Trust:
    """The keys that the auditor trusts.

    Attributes:
        keys: The public keys.
        roles: Key id -> the roles in which it counts; a key that is not listed counts in any role.
    """

    keys: Sequence[SSlibKey] = ()
    roles: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def counts(self, keyid: str, role: str) -> bool:
        """Whether a signature of a key counts in a role."""
        return keyid not in self.roles or role in self.roles[keyid]

    def counted(self, signature: Signature) -> list[str]:
        """Return the ids of the trusted keys whose signatures count."""
        return [keyid for keyid in signature.trusted if self.counts(keyid, signature.role)]

    def signers(self, signatures: Sequence[Signature]) -> list[str]:
        """Name each filled role with its keys."""
        filled = [(signature.role, self.counted(signature)) for signature in signatures]
        return [f"{role} ({', '.join(keyid[:12] for keyid in keys)})" for role, keys in filled if keys]


def read_trust(texts: Sequence[str]) -> Trust:
    """Read the values of ``--trust``: ``KEY``, or ``ROLE=KEY``.

    Raises:
        UsageError: A file is not a public key, a role is not one, or a key is given with and without a role.
    """
    keys: dict[str, SSlibKey] = {}
    given: dict[str, set[str | None]] = {}
    for text in texts:
        role, path = _role_and_path(text)
        key = read_public_key(path)
        keys[key.keyid] = key
        given.setdefault(key.keyid, set()).add(role)
        if None in given[key.keyid] and len(given[key.keyid]) > 1:
            raise UsageError(f"--trust {text}: this key is given with a role and without; write ROLE=KEY.")
    roles = {keyid: frozenset(r for r in named if r is not None) for keyid, named in given.items()}
    return Trust(list(keys.values()), {keyid: named for keyid, named in roles.items() if named})


def _role_and_path(text: str) -> tuple[str | None, Path]:
    """Split ``ROLE=KEY``; a path that has a ``=`` may be written with a folder, such as ``./a=b.pub``."""
    role, equals, path = text.partition("=")
    if not equals or "/" in role or "\\" in role:
        return None, Path(text)
    check_role(role)
    return role, Path(path)


def check_trust(signatures: Sequence[Signature], trust: Trust, roles: Sequence[str]) -> list[Finding]:
    """C3: require signatures of the producer and of the given roles, and of no key in the role of another."""
    by_role = {s.role: s for s in signatures}
    findings = [Finding(_file(s.role), "", what) for s in signatures for what in _borrowed(s, trust)]
    for role in dict.fromkeys((PRODUCER, *roles)):
        if role not in by_role:
            findings.append(Finding(_file(role), "", "is missing: no one signed in this role"))
        elif not trust.counted(by_role[role]):
            findings.append(Finding(_file(role), "", "has no signature by a key given with --trust"))
    return findings


def _borrowed(signature: Signature, trust: Trust) -> Iterator[str]:
    for keyid in signature.trusted:
        if not trust.counts(keyid, signature.role):
            named = " and ".join(sorted(trust.roles[keyid]))
            yield f"is signed by the key {keyid[:12]}, which --trust gives the role {named}"


def check_people(signatures: Sequence[Signature], trust: Trust, generated: str, stamp: Stamp) -> Check:
    """C13: require one role for each key, no time in the future, no countersignature before the run.

    Two keys that count in any role may belong to one person: then the check is incomplete, as it is with a
    timestamp that could not be checked.
    """
    findings = [*_shared_keys(signatures), *_times(signatures, generated), *stamp.findings]
    unchecked = [text for text in (_loose_roles(signatures, trust), stamp.unchecked) if text]
    if unchecked and not findings:
        return Check("C13", "incomplete", note="; ".join(unchecked))
    unverified = [s.role for s in signatures if not trust.counted(s)]
    total = counted(len(signatures) - len(unverified), "verified signature")
    left_out = (
        f"Who signed as {' and '.join(unverified)}: by no key given with --trust." if unverified else ""
    )
    check = make_check("C13", findings, "; ".join(note for note in (total, stamp.note) if note))
    return replace(check, left_out=left_out)


def _loose_roles(signatures: Sequence[Signature], trust: Trust) -> str:
    """Say which roles trusted keys fill, if there are several and the key of one is bound to no role."""
    filled = {s.role: trust.counted(s) for s in signatures if trust.counted(s)}
    bound = all(any(k in trust.roles for k in keyids) for keyids in filled.values())
    if len(filled) < 2 or bound:
        return ""
    what = "the keys count in any role, so that one person may hold both; bind them with --trust ROLE=KEY"
    return f"{' and '.join(sorted(filled))}: {what}"


def _shared_keys(signatures: Sequence[Signature]) -> Iterator[Finding]:
    used: dict[str, str] = {}
    for signature in signatures:
        for keyid in signature.claimed:
            if keyid in used:
                what = f"is signed by the key of {used[keyid]!r}: one person in two roles"
                yield Finding(_file(signature.role), "", what)
            used.setdefault(keyid, signature.role)


def _times(signatures: Sequence[Signature], generated: str) -> Iterator[Finding]:
    latest, made = datetime.now(UTC) + CLOCK_TOLERANCE, instant(generated)
    if made is None or made > latest:
        what = "is not a time with a zone" if made is None else "is in the future"
        yield Finding(bundles.REPORT, "/timing/generated_at", f"{generated[:40]!r} {what}")
    for signature in signatures:
        statement = signature.statement
        if statement is None:
            continue
        when = instant(statement.signed_at)
        if when is None or when > latest or (made is not None and when < made - CLOCK_TOLERANCE):
            what = f"{statement.signed_at[:40]!r} is not a time between the run and now"
            yield Finding(_file(signature.role), "/predicate/signed_at", what)


def _file(role: str) -> str:
    return f"{bundles.SIGNATURES}/{role}.dsse.json"
