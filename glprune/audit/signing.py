"""C3 and C13: in-toto statements in DSSE envelopes, signed with local keys; trust comes from the caller."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from glprune._files import unreadable_reason
from glprune.audit.findings import Finding
from glprune.errors import UsageError
from glprune.schema import bundle as bundles
from glprune.schema.manifest import STATEMENT, Subject, sha256
from glprune.schema.strict_json import StrictError, read_json

PRODUCER = "producer"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
COUNTERSIGNATURE = "urn:glprune:countersignature:1"
PASSWORD = "GLPRUNE_KEY_PASSWORD"  # the name of the variable, not a password
_ROLE = re.compile(r"^[a-z0-9][a-z0-9-]{0,39}$")
_SLACK = timedelta(days=1)  # clocks of two machines


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CountersignaturePredicate(_Strict):
    """What a countersigner says."""

    role: str
    statement: str
    signed_at: str = Field(description="RFC 3339, UTC, the signer's clock")


class Countersignature(_Strict):
    """The payload of a countersignature, an in-toto Statement v1 about the manifest."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[Subject]
    predicate_type: Literal["urn:glprune:countersignature:1"] = Field(alias="predicateType")
    predicate: CountersignaturePredicate


@dataclass(frozen=True)
class Signature:
    """One file below ``signatures/`` that was read.

    Attributes:
        role: ``producer`` or the countersigner's.
        claimed: Key ids it names, trusted or not.
        trusted: Those whose signature holds under a key the caller trusts.
        said: What a countersigner says; None for the producer.
    """

    role: str
    claimed: tuple[str, ...]
    trusted: tuple[str, ...]
    said: CountersignaturePredicate | None


def make_key(path: Path) -> Path:
    """Write a new Ed25519 key pair as PEM: ``path`` (readable by its owner alone) and ``path``.pub.

    Raises:
        UsageError: Either file exists or cannot be written.
    """
    if not path.name:
        raise UsageError(f"{path} is a folder, not a file; name the key's file.")
    key, public = Ed25519PrivateKey.generate(), path.with_name(path.name + ".pub")
    for file in (path, public):
        if file.exists():
            raise UsageError(f"{file} exists; a key is never overwritten.")
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(secret)
        public.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); name another place.") from None
    return public


def read_public_key(path: Path) -> SSlibKey:
    """Read a PEM public key, Ed25519 or ECDSA.

    Raises:
        UsageError: It is none.
    """
    raw = _read_key(path)
    if b"PRIVATE KEY" in raw:
        raise UsageError(f"{path} is a private key; name its public half.")
    try:
        key = serialization.load_pem_public_key(raw)
        if isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey):
            return SSlibKey.from_crypto(key)
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise UsageError(f"{path} is no PEM public key of Ed25519 or ECDSA; `glprune keygen` makes one.")


def read_private_key(path: Path) -> CryptoSigner:
    """Read a PEM private key, Ed25519 or ECDSA; an encrypted one with $GLPRUNE_KEY_PASSWORD.

    Raises:
        UsageError: It is none, or the password is missing or wrong.
    """
    raw, password = _read_key(path), os.environ.get(PASSWORD)
    try:
        key = serialization.load_pem_private_key(raw, password.encode() if password else None)
        if isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey):
            return CryptoSigner(key)
    except TypeError:
        state = "is not encrypted; unset" if password else "is encrypted; set"
        raise UsageError(f"{path} {state} ${PASSWORD}.") from None
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise UsageError(f"{path} is no PEM private key of Ed25519 or ECDSA that can be opened.")


def _read_key(path: Path) -> bytes:
    why = unreadable_reason(path)
    if why is not None:
        raise UsageError(f"{path} {why}; name a PEM file.")
    with path.open("rb") as stream:
        return stream.read(1 << 16)


def sign(folder: Path, manifest: bytes, key: CryptoSigner) -> Path:
    """Sign a bundle's manifest as its producer; countersignatures of an older one are left to fail."""
    return _store(folder, PRODUCER, manifest, key)


def countersign(folder: Path, manifest: bytes, key: CryptoSigner, role: str, statement: str) -> Path:
    """Add the signature of a second person under a role, with what they have to say.

    Raises:
        UsageError: The role is not made of small letters, digits and hyphens, or is the producer's.
    """
    if not _ROLE.match(role) or role == PRODUCER:
        raise UsageError(f"role {role!r}: give one of small letters, digits and '-', such as validator.")
    payload = {
        "_type": STATEMENT,
        "subject": [{"name": bundles.MANIFEST, "digest": {"sha256": sha256(manifest)}}],
        "predicateType": COUNTERSIGNATURE,
        "predicate": {
            "role": role,
            "statement": statement,
            "signed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }
    return _store(folder, role, bundles.as_json(payload).encode(), key)


def _store(folder: Path, role: str, payload: bytes, key: CryptoSigner) -> Path:
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(key)
    path = folder / bundles.SIGNATURES / f"{role}.dsse.json"
    try:
        path.parent.mkdir(exist_ok=True)
        bundles.write_json(path, envelope.to_dict())
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}).") from None
    return path


def read_signatures(
    files: Mapping[str, bytes], manifest: bytes, trusted: Sequence[SSlibKey]
) -> tuple[list[Signature], list[Finding]]:
    """Read every envelope below ``signatures/`` and verify it under the trusted keys.

    Args:
        files: File name -> bytes.
        manifest: The bytes of the manifest, which all of them must be about.
        trusted: The keys the caller trusts; a key in the bundle counts for nothing.

    Returns:
        The signatures, and what is wrong with any: a broken one fails whoever made it.
    """
    found, findings = [], []
    for name, raw in sorted(files.items()):
        role, place = name.removesuffix(".dsse.json"), f"{bundles.SIGNATURES}/{name}"
        try:
            found.append(_read_signature(raw, role, manifest, trusted))
        except StrictError as error:
            findings.append(Finding(place, "", str(error)))
    return found, findings


def _read_signature(raw: bytes, role: str, manifest: bytes, trusted: Sequence[SSlibKey]) -> Signature:
    envelope = _envelope(read_json(raw))
    said = None
    if role == PRODUCER:
        if envelope.payload != manifest:
            raise StrictError(f"signs other bytes than those of {bundles.MANIFEST}")
    else:
        said = _said(envelope.payload, role, manifest)
    valid = []
    for key in trusted:
        if key.keyid in envelope.signatures:
            try:
                envelope.verify([key], 1)
            except VerificationError:
                raise StrictError(
                    f"the signature of the trusted key {key.keyid[:12]} does not hold"
                ) from None
            valid.append(key.keyid)
    return Signature(role, tuple(envelope.signatures), tuple(valid), said)


def _envelope(value: Any) -> Envelope:
    try:
        envelope = Envelope.from_dict(copy.deepcopy(value))  # from_dict changes what it is given
    except Exception as error:  # noqa: BLE001 - the file is hostile, and this reader checks little
        raise StrictError(f"is no DSSE envelope ({type(error).__name__})") from None
    if envelope.payload_type != PAYLOAD_TYPE or not envelope.signatures:
        raise StrictError(f"is no signed envelope of {PAYLOAD_TYPE}")
    return envelope


def _said(payload: bytes, role: str, manifest: bytes) -> CountersignaturePredicate:
    try:
        statement = Countersignature.model_validate(read_json(payload))
    except ValidationError as error:
        raise StrictError(f"its statement is no countersignature ({error.errors()[0]['msg']})") from None
    if [(s.name, s.digest.sha256) for s in statement.subject] != [(bundles.MANIFEST, sha256(manifest))]:
        raise StrictError(f"is about another {bundles.MANIFEST}")
    if statement.predicate.role != role:
        raise StrictError(f"says role {statement.predicate.role!r}")
    return statement.predicate


def check_trust(signatures: Sequence[Signature], roles: Sequence[str]) -> list[Finding]:
    """Hold the signatures against what the caller asked for: the producer's, and the roles required."""
    findings = []
    by_role = {s.role: s for s in signatures}
    for role in (PRODUCER, *roles):
        place = f"{bundles.SIGNATURES}/{role}.dsse.json"
        if role not in by_role:
            findings.append(Finding(place, "", "is missing: nobody signed in this role"))
        elif not by_role[role].trusted:
            findings.append(Finding(place, "", "no signature in it is by a key given with --trust"))
    return findings


def check_people(signatures: Sequence[Signature], generated: str) -> list[Finding]:
    """C13: no key in two roles, no time in the future, no countersignature older than the run."""
    findings, now = [], datetime.now(UTC)
    used: dict[str, str] = {}
    for signature in signatures:
        place = f"{bundles.SIGNATURES}/{signature.role}.dsse.json"
        for keyid in signature.claimed:
            if keyid in used:
                what = f"is signed by the key of {used[keyid]!r}: one person in two roles"
                findings.append(Finding(place, "", what))
            used.setdefault(keyid, signature.role)
    made = instant(generated)
    if made is None or made > now + _SLACK:
        what = "is no time with a zone" if made is None else "lies in the future"
        findings.append(Finding(bundles.REPORT, "/timing/generated_at", f"{generated[:40]!r} {what}"))
    for signature in signatures:
        said = signature.said
        if said is None:
            continue
        when, place = instant(said.signed_at), f"{bundles.SIGNATURES}/{signature.role}.dsse.json"
        if when is None or when > now + _SLACK or (made is not None and when < made - _SLACK):
            what = f"{said.signed_at[:40]!r} is no time between the run and now"
            findings.append(Finding(place, "/predicate/signed_at", what))
    return findings


def instant(text: str) -> datetime | None:
    """A time with its zone; None where the text is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
