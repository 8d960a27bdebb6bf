"""A time-stamping authority of the tests: certificates and RFC 3161 replies, wrong ones among them."""

import datetime
import hashlib
from dataclasses import dataclass, field

from asn1crypto import algos, cms, core, tsp
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)
TOKEN_INFO = "1.2.840.113549.1.9.16.1.4"


@dataclass
class Holder:
    """A key with its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self):
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def holder(
    name, issuer=None, *, usages=(), critical=True, is_ca=False, valid=(NOW - 400 * DAY, NOW + 400 * DAY)
):
    """Make a key and its certificate, signed by the issuer or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if issuer:
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
        builder = builder.add_extension(issuer_key, critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=critical)
    return Holder(key, builder.sign(issuer.key if issuer else key, hashes.SHA256()))


@dataclass
class Authority:
    """A root and the certificate that signs tokens."""

    root: Holder = field(default_factory=lambda: holder("Test root", is_ca=True))
    signer: Holder | None = None

    def __post_init__(self):
        if self.signer is None:
            self.signer = holder("Test time", self.root, usages=[ExtendedKeyUsageOID.TIME_STAMPING])

    def reply_of_openssl(self, message, *, at=NOW):
        """Return a reply with a chain whose certificates are in no order of DER, as OpenSSL sends it."""
        reply = self.reply(message, at=at)
        mine, root = (
            holder.certificate.public_bytes(serialization.Encoding.DER) for holder in (self.signer, self.root)
        )
        both = tsp.TimeStampResp.load(reply)
        signed = both["time_stamp_token"]["content"]
        signed["certificates"] = [asn1_x509.Certificate.load(c) for c in (mine, root)]
        reply, (first, second) = both.dump(force=True), sorted((mine, root))
        assert first + second in reply
        return reply.replace(first + second, second + first)

    def reply(self, message, *, at=NOW, digest="sha256", status="granted", certificates=True):
        """Return a TimeStampResp on a message, in DER."""
        token = self.token(message, at=at, digest=digest, certificates=certificates)
        if status == "rejection":
            return bytes.fromhex("30053003020102")  # the status alone
        return tsp.TimeStampResp({"status": {"status": status}, "time_stamp_token": token}).dump()

    def token(self, message, *, at=NOW, digest="sha256", certificates=True):
        """Return the signed token on a message."""
        algorithm = algos.DigestAlgorithm({"algorithm": digest})
        imprint = {"hash_algorithm": algorithm, "hashed_message": hashlib.new(digest, message).digest()}
        info = tsp.TSTInfo(
            {
                "version": "v1",
                "policy": "1.2.3.4.1",
                "message_imprint": imprint,
                "serial_number": 7,
                "gen_time": at,
            }
        ).dump()
        signer = asn1_x509.Certificate.load(self.signer.certificate.public_bytes(serialization.Encoding.DER))
        signed = cms.SignedData(
            {
                "version": "v3",
                "digest_algorithms": [algos.DigestAlgorithm({"algorithm": "sha256"})],
                "encap_content_info": {"content_type": TOKEN_INFO, "content": core.ParsableOctetString(info)},
                "certificates": [signer] if certificates else [],
                "signer_infos": [self._signer_info(info, signer)],
            }
        )
        return cms.ContentInfo({"content_type": "signed_data", "content": signed})

    def _signer_info(self, info, signer):
        issuer = {"issuer": signer.issuer, "serial_number": signer.serial_number}
        attributes = cms.CMSAttributes(
            [
                cms.CMSAttribute({"type": "content_type", "values": [TOKEN_INFO]}),
                cms.CMSAttribute({"type": "message_digest", "values": [hashlib.sha256(info).digest()]}),
                cms.CMSAttribute({"type": "signing_certificate_v2", "values": [_named(signer)]}),
            ]
        )
        signature = self.signer.key.sign(attributes.dump(), ec.ECDSA(hashes.SHA256()))
        return {
            "version": "v1",
            "sid": cms.SignerIdentifier({"issuer_and_serial_number": issuer}),
            "digest_algorithm": algos.DigestAlgorithm({"algorithm": "sha256"}),
            "signed_attrs": attributes,
            "signature_algorithm": algos.SignedDigestAlgorithm({"algorithm": "sha256_ecdsa"}),
            "signature": signature,
        }


def _named(signer):
    """ESSCertIDv2: the certificate that signs, bound to the signature."""
    return tsp.SigningCertificateV2({"certs": [{"cert_hash": hashlib.sha256(signer.dump()).digest()}]})
