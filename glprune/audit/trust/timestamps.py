"""RFC 3161 timestamps of the manifest: an authority states that its bytes existed at a time.

Needs the package ``rfc3161-client`` (extra ``timestamp``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from glprune._files import unreadable_reason
from glprune.audit.findings import Finding
from glprune.audit.signing import instant
from glprune.audit.trust.der import sequence, with_ordered_certificates
from glprune.audit.trust.roles import CLOCK_TOLERANCE, Stamp
from glprune.errors import UsageError
from glprune.schema import bundle as bundles
from glprune.schema.strict_json import StrictError

if TYPE_CHECKING:
    from rfc3161_client import TimeStampResponse

MISSING = "rfc3161-client is not installed; pip install 'glprune[timestamp]'"
_MAX_BYTES = 1 << 16
_REASON = 200  # characters of the library's reason
_DIGESTS = {
    "2.16.840.1.101.3.4.2.1": hashlib.sha256,
    "2.16.840.1.101.3.4.2.2": hashlib.sha384,
    "2.16.840.1.101.3.4.2.3": hashlib.sha512,
}
_GRANTED = b"\x30\x03\x02\x01\x00"  # PKIStatusInfo in DER: the status alone, 0


@dataclass(frozen=True)
class Authority:
    """The certificates of a time-stamping authority.

    Attributes:
        roots: Self-signed certificates; the trust begins here.
        intermediates: Certificates between a root and the one that signs.
        signer: The certificate that signs, where the auditor gave it.
    """

    roots: Sequence[x509.Certificate]
    intermediates: Sequence[x509.Certificate]
    signer: x509.Certificate | None

    def __reduce__(self) -> tuple[Callable[[bytes], Authority], tuple[bytes]]:
        """Pickle as PEM, which a process that verifies reads again; certificates themselves cannot be."""
        certificates = [*self.roots, *self.intermediates, *([self.signer] if self.signer else [])]
        return _authority, (b"".join(c.public_bytes(Encoding.PEM) for c in certificates),)


def _authority(content: bytes) -> Authority:
    """Sort the certificates of PEM content by what they are for.

    Raises:
        ValueError: There are no certificates, no root, or two that sign.
    """
    found = x509.load_pem_x509_certificates(content)
    signers = [c for c in found if _stamps(c)]
    roots = [c for c in found if c.issuer == c.subject]
    if not roots or len(signers) > 1:
        what = "no self-signed certificate; append the root's" if not roots else "several that sign; keep one"
        raise _ChainError(what)
    others = [c for c in found if c not in roots and c not in signers]
    return Authority(roots, others, signers[0] if signers else None)


class _ChainError(ValueError):
    """The certificates are no chain of one authority."""


def read_authority(path: Path) -> Authority:
    """Read a PEM file with the root certificate of an authority, and others of its chain.

    Raises:
        UsageError: The file holds no certificates, no root, or two that sign.
    """
    reason = unreadable_reason(path)
    if reason is not None:
        raise UsageError(f"{path} {reason}; name a PEM file with the authority's certificates.")
    try:
        return _authority(_read(path))
    except _ChainError as error:
        raise UsageError(f"{path} holds {error}.") from None
    except (ValueError, x509.DuplicateExtension):
        raise UsageError(f"{path} holds no certificates in PEM; ask the authority for its root.") from None


def _read(path: Path) -> bytes:
    """Read no more than a timestamp, or the certificates of its authority, can have."""
    with path.open("rb") as stream:
        return stream.read(_MAX_BYTES + 1)


def _stamps(certificate: x509.Certificate) -> bool:
    """Whether a certificate is one that signs timestamps."""
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.TIME_STAMPING in usages.value


def store_timestamp(folder: Path, manifest: bytes, token: Path) -> Path:
    """Put the reply of an authority, or its token, beside the signatures of a bundle.

    Raises:
        UsageError: The file is not a timestamp of this manifest, or cannot be read or written.
    """
    reason = unreadable_reason(token)
    if reason is not None:
        raise UsageError(f"{token} {reason}; name the reply of a time-stamping authority.")
    raw = _read(token)
    try:
        _check_imprint(_parse(raw), manifest)
    except ImportError:
        raise UsageError(f"--timestamp-token: {MISSING}.") from None
    except StrictError as error:
        raise UsageError(f"{token} {error}; ask the authority for one of {bundles.MANIFEST}.") from None
    path = folder / bundles.SIGNATURES / bundles.TIMESTAMP
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}).") from None
    return path


def check_timestamp(raw: bytes | None, manifest: bytes, authority: Authority | None, generated: str) -> Stamp:
    """Verify the timestamp of a bundle, offline.

    Args:
        raw: The stored reply or token; None where the bundle has none.
        manifest: The bytes of the manifest.
        authority: The authority that the auditor trusts; None where none was given.
        generated: The time of the run, by the report.
    """
    file = f"{bundles.SIGNATURES}/{bundles.TIMESTAMP}"
    if raw is None:
        what = "is missing: no authority stamped the manifest"
        return Stamp([Finding(file, "", what)] if authority is not None else [])
    if authority is None:
        return Stamp(unchecked=f"{file} is not checked; name its authority with --timestamp-authority")
    try:
        response = _parse(raw)
        _check_imprint(response, manifest)
        _check_signature(response, manifest, authority)
        _check_time(response.tst_info.gen_time, generated)
    except ImportError:
        return Stamp(unchecked=f"{file} is not checked: {MISSING}")
    except StrictError as error:
        return Stamp([Finding(file, "", str(error))])
    return Stamp(note=f"manifest stamped at {response.tst_info.gen_time.isoformat()}")


def _parse(raw: bytes) -> TimeStampResponse:
    """Read a reply in DER, or a token alone, which is wrapped into one."""
    from rfc3161_client import decode_timestamp_response  # noqa: PLC0415 - an optional package

    if len(raw) > _MAX_BYTES:
        raise StrictError(f"has {len(raw):,} bytes; a timestamp has at most {_MAX_BYTES:,}")
    reasons = []
    for reply in (raw, sequence(_GRANTED + raw)):
        try:
            decoded = decode_timestamp_response(with_ordered_certificates(reply))
            _ = decoded.tst_info.message_imprint, decoded.tst_info.gen_time  # parsed when they are asked for
        except ValueError as error:
            reasons.append(" ".join(str(error).split())[:_REASON])
            continue
        return decoded
    raise StrictError(f"is not a granted reply of RFC 3161, nor its token ({reasons[0]})")


def _check_imprint(response: TimeStampResponse, manifest: bytes) -> None:
    imprint = response.tst_info.message_imprint
    digest = _DIGESTS.get(imprint.hash_algorithm.dotted_string)
    if digest is None:
        raise StrictError(f"uses the digest {imprint.hash_algorithm.dotted_string}, not SHA-256 or longer")
    if imprint.message != digest(manifest).digest():
        raise StrictError(f"is a timestamp of other bytes than {bundles.MANIFEST}")


def _check_signature(response: TimeStampResponse, manifest: bytes, authority: Authority) -> None:
    """Require a signature by a certificate for timestamps that a root of the authority vouches for."""
    from rfc3161_client import VerifierBuilder  # noqa: PLC0415 - an optional package

    verifier = VerifierBuilder(
        tsa_certificate=authority.signer,
        roots=list(authority.roots),
        intermediates=list(authority.intermediates),
    ).build()
    try:
        verifier.verify_message(response, manifest)
    except Exception as error:  # noqa: BLE001 - the certificates in it are hostile too
        reason = str(error).partition(": ErrorStack")[0]
        raise StrictError(f"is not by the given authority: {reason[:200]}") from None


def _check_time(stamped: datetime, generated: str) -> None:
    """Require a time between the run and now."""
    made = instant(generated)
    if stamped > datetime.now(UTC) + CLOCK_TOLERANCE:
        raise StrictError(f"says {stamped.isoformat()}, which is in the future")
    if made is not None and stamped < made - CLOCK_TOLERANCE:
        raise StrictError(f"says {stamped.isoformat()}, before the run of {generated[:40]!r}")
