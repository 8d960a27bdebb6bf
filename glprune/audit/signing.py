"""In-toto statements in DSSE envelopes, signed with local keys; trust comes from the caller."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

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
from glprune.audit.trust.ed25519 import is_sound_key, is_sound_signature
from glprune.errors import UsageError
from glprune.schema import bundle as bundles
from glprune.schema.manifest import STATEMENT, Subject, sha256
from glprune.schema.strict_json import StrictError, read_json

PRODUCER = "producer"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
COUNTERSIGNATURE = "urn:glprune:countersignature:1"
PASSWORD = "GLPRUNE_KEY_PASSWORD"  # the name of the variable, not a password
WEAK_KEY = "an Ed25519 key of small or mixed order, or not in canonical form"
_ROLE = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class StrictRecord(BaseModel):
    """A frozen record that refuses unknown keys and other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StatementPredicate(StrictRecord):
    """Who states something, and when."""

    role: str
    statement: str
    signed_at: str = Field(description="RFC 3339, UTC, by the clock of the signer")


class Countersignature(StrictRecord):
    """The payload of a countersignature, an in-toto Statement v1 about the manifest."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[Subject]
    predicate_type: Literal["urn:glprune:countersignature:1"] = Field(alias="predicateType")
    predicate: StatementPredicate


@dataclass(frozen=True)
class Signature:
    """One parsed file of ``signatures/``.

    Attributes:
        role: ``producer``, or the role of the countersigner.
        claimed: Ids of the keys it names, trusted or not.
        trusted: Ids of the trusted keys whose signature is valid.
        statement: The statement of a countersigner; None for the producer.
    """

    role: str
    claimed: tuple[str, ...]
    trusted: tuple[str, ...]
    statement: StatementPredicate | None


def make_key(path: Path) -> Path:
    """Write a new Ed25519 key pair as PEM: ``path`` (readable only by its owner) and ``path``.pub.

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
        UsageError: The file is not such a key, or an Ed25519 key for which anybody can sign.
    """
    raw = _read_key(path)
    if b"PRIVATE KEY" in raw:
        raise UsageError(f"{path} is a private key; name its public half.")
    try:
        key = serialization.load_pem_public_key(raw)
        if isinstance(key, Ed25519PublicKey) and not is_sound_key(key.public_bytes_raw()):
            raise UsageError(f"{path} is {WEAK_KEY}; ask its owner for a key made by `glprune keygen`.")
        if isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey):
            return SSlibKey.from_crypto(key)
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise UsageError(f"{path} is not a PEM public key of Ed25519 or ECDSA; `glprune keygen` creates one.")


def read_private_key(path: Path) -> CryptoSigner:
    """Read a PEM private key, Ed25519 or ECDSA; $GLPRUNE_KEY_PASSWORD decrypts an encrypted one.

    Raises:
        UsageError: The file is not such a key, or the password is missing or wrong.
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
    raise UsageError(f"{path} is not a readable PEM private key of Ed25519 or ECDSA.")


def _read_key(path: Path) -> bytes:
    reason = unreadable_reason(path)
    if reason is not None:
        raise UsageError(f"{path} {reason}; name a PEM file.")
    with path.open("rb") as stream:
        return stream.read(1 << 16)


def sign(folder: Path, manifest: bytes, key: CryptoSigner) -> Path:
    """Sign the manifest of a bundle as its producer; countersignatures of an older one become invalid."""
    return _store(folder, PRODUCER, manifest, key)


def check_role(role: str) -> None:
    """Require a role made of lower-case letters, digits and hyphens.

    Raises:
        UsageError: It is not.
    """
    if not _ROLE.fullmatch(role):
        raise UsageError(f"role {role[:60]!r}: use lower-case letters, digits and '-', such as validator.")


def countersign(folder: Path, manifest: bytes, key: CryptoSigner, role: str, statement: str) -> Path:
    """Add the signature of another person, with a role and a statement.

    Raises:
        UsageError: The role is not made of lower-case letters, digits and hyphens, or is the producer's.
    """
    check_role(role)
    if role == PRODUCER:
        raise UsageError(f"role {role!r} is that of `glprune sign`; name another, such as validator.")
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
    path = folder / bundles.SIGNATURES / f"{role}.dsse.json"
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}).") from None
    write_envelope(path, payload, key)
    return path


def write_envelope(path: Path, payload: bytes, key: CryptoSigner) -> None:
    """Sign an in-toto Statement and write its DSSE envelope.

    Raises:
        UsageError: The file cannot be written.
    """
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(key)
    try:
        bundles.write_json(path, envelope.to_dict())
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}).") from None


def read_signatures(
    files: Mapping[str, bytes], manifest: bytes, trusted: Sequence[SSlibKey]
) -> tuple[list[Signature], list[Finding]]:
    """Read every envelope in ``signatures/`` and verify it with the trusted keys.

    Args:
        files: File name -> bytes; a timestamp among them is left out.
        manifest: The bytes of the manifest that all must sign.
        trusted: The keys the caller trusts; keys in the bundle are ignored.

    Returns:
        The signatures, and their errors: an invalid signature fails, whoever made it.
    """
    found, findings = [], []
    for name, raw in sorted(files.items()):
        if name == bundles.TIMESTAMP:
            continue
        role, file = name.removesuffix(".dsse.json"), f"{bundles.SIGNATURES}/{name}"
        try:
            found.append(_read_signature(raw, role, manifest, trusted))
        except StrictError as error:
            findings.append(Finding(file, "", str(error)))
    return found, findings


def _read_signature(raw: bytes, role: str, manifest: bytes, trusted: Sequence[SSlibKey]) -> Signature:
    envelope = read_envelope(raw)
    statement = None
    if role == PRODUCER:
        if envelope.payload != manifest:
            raise StrictError(f"signs other bytes than {bundles.MANIFEST}")
    else:
        statement = _countersignature(envelope.payload, role, manifest)
    return Signature(role, tuple(envelope.signatures), valid_keys(envelope, trusted), statement)


def valid_keys(envelope: Envelope, trusted: Sequence[SSlibKey]) -> tuple[str, ...]:
    """Return the ids of the trusted keys that signed.

    Raises:
        StrictError: The signature under the id of a trusted key is invalid.
    """
    signed = [key for key in trusted if key.keyid in envelope.signatures]
    for key in signed:
        _check_form(key, envelope.signatures[key.keyid].signature)
        try:
            envelope.verify([key], 1)
        except VerificationError:
            raise StrictError(f"the signature of the trusted key {key.keyid[:12]} is invalid") from None
    return tuple(key.keyid for key in signed)


def _check_form(key: SSlibKey, signature: str) -> None:
    """Refuse Ed25519 keys and signatures that no honest signer makes; both in hex."""
    if key.keytype != "ed25519":
        return
    if not is_sound_key(bytes.fromhex(key.keyval["public"])):
        raise StrictError(f"the trusted key {key.keyid[:12]} is {WEAK_KEY}")
    if not is_sound_signature(bytes.fromhex(signature)):
        what = "holds a point of small or mixed order, or is not in canonical form"
        raise StrictError(f"the Ed25519 signature of the trusted key {key.keyid[:12]} {what}")


def read_envelope(raw: bytes) -> Envelope:
    """Read a signed DSSE envelope of an in-toto Statement.

    Raises:
        StrictError: The bytes are not one.
    """
    value = read_json(raw)
    try:
        envelope = Envelope.from_dict(value)
    except Exception as error:  # noqa: BLE001 - the file is hostile, and this reader checks little
        raise StrictError(f"is not a DSSE envelope ({type(error).__name__})") from None
    if envelope.payload_type != PAYLOAD_TYPE or not envelope.signatures:
        raise StrictError(f"is not a signed envelope of {PAYLOAD_TYPE}")
    return envelope


def _countersignature(payload: bytes, role: str, manifest: bytes) -> StatementPredicate:
    try:
        statement = Countersignature.model_validate(read_json(payload))
    except ValidationError as error:
        raise StrictError(f"its statement is not a countersignature ({error.errors()[0]['msg']})") from None
    if [(s.name, s.digest.sha256) for s in statement.subject] != [(bundles.MANIFEST, sha256(manifest))]:
        raise StrictError(f"signs another {bundles.MANIFEST}")
    if statement.predicate.role != role:
        raise StrictError(f"says role {statement.predicate.role!r}")
    return statement.predicate


def instant(text: str) -> datetime | None:
    """Parse a time with a zone; None if the text is not one."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
