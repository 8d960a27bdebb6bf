"""Signed statements on the original model: which file it is, and who says so."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from securesystemslib.signer import CryptoSigner

from glprune._files import unreadable_reason
from glprune.audit import signing
from glprune.audit.signing import StatementPredicate, StrictRecord
from glprune.audit.trust.roles import CLOCK_TOLERANCE, Trust
from glprune.errors import UsageError
from glprune.schema import bundle as bundles
from glprune.schema.manifest import STATEMENT, Subject
from glprune.schema.strict_json import StrictError, read_json

PREDICATE = "urn:glprune:original:1"
_MAX_BYTES = 1 << 20


class Original(StrictRecord):
    """The payload of an attestation, an in-toto Statement v1 about one file."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[Subject] = Field(min_length=1, max_length=1)
    predicate_type: Literal["urn:glprune:original:1"] = Field(alias="predicateType")
    predicate: StatementPredicate


@dataclass(frozen=True)
class Attestation:
    """A statement that was read, not yet verified.

    Attributes:
        file: Where it was read.
        raw: Its bytes: a DSSE envelope.
    """

    file: str
    raw: bytes


@dataclass(frozen=True)
class Attested:
    """A statement with its signatures verified.

    Attributes:
        digest: Of the original, as ``sha256:<hex>``.
        signature: Its role, keys and those that are trusted.
        signers: Ids of the trusted keys that count in its role.
        predicate: Role, text and time.
    """

    digest: str
    signature: signing.Signature
    signers: Sequence[str]
    predicate: StatementPredicate


def attest_original(model: Path, key: CryptoSigner, role: str, statement: str, out: Path) -> None:
    """Write a signed statement that a file is the original model.

    Raises:
        UsageError: The model cannot be read, the role is none, or ``out`` exists or cannot be written.
    """
    signing.check_role(role)
    reason = unreadable_reason(model)
    if reason is not None:
        raise UsageError(f"{model} {reason}; name the file with the trained weights.")
    if out.exists():
        raise UsageError(f"{out} exists; remove it or name another --out.")
    payload = {
        "_type": STATEMENT,
        "subject": [
            {"name": model.name, "digest": {"sha256": bundles.digest(model).removeprefix("sha256:")}}
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "role": role,
            "statement": statement,
            "signed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }
    signing.write_envelope(out, bundles.as_json(payload).encode(), key)


def read_attestation(path: Path) -> Attestation | None:
    """Read a file as an attestation; None where it holds something else, such as a model.

    Raises:
        UsageError: It is a JSON object and not an attestation.
    """
    if os.stat(path).st_size > _MAX_BYTES:
        return None
    raw = path.read_bytes()
    try:
        value = read_json(raw)
    except StrictError:
        return None
    if not isinstance(value, dict):
        return None
    try:
        _parse(signing.read_envelope(raw).payload)
    except StrictError as error:
        raise UsageError(f"{path} is not from `glprune attest-original`: {error}.") from None
    return Attestation(str(path), raw)


def verify_attestation(attestation: Attestation, trust: Trust) -> Attested:
    """Verify the signatures of an attestation with the trusted keys.

    Raises:
        StrictError: The signature of a trusted key is invalid, or the time is none or in the future.
    """
    envelope = signing.read_envelope(attestation.raw)
    statement = _parse(envelope.payload)
    predicate, when = statement.predicate, signing.instant(statement.predicate.signed_at)
    if when is None or when > datetime.now(UTC) + CLOCK_TOLERANCE:
        raise StrictError(f"{predicate.signed_at[:40]!r} is not a time before now")
    trusted = signing.valid_keys(envelope, trust.keys)
    signature = signing.Signature(predicate.role, tuple(envelope.signatures), trusted, None)
    digest = f"sha256:{statement.subject[0].digest.sha256}"
    return Attested(digest, signature, trust.counted(signature), predicate)


def _parse(payload: bytes) -> Original:
    try:
        return Original.model_validate(read_json(payload))
    except ValidationError as error:
        place = "/".join(map(str, error.errors()[0]["loc"]))
        raise StrictError(f"its statement does not fit at /{place}: {error.errors()[0]['msg']}") from None
