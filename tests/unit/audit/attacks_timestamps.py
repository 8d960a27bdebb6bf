"""Attacks with timestamps of a manifest."""

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.x509.oid import ExtendedKeyUsageOID

from glprune.schema import bundle as bundles
from tests.timestamp_authority import DAY, NOW, Authority, holder

STAMPS = [ExtendedKeyUsageOID.TIME_STAMPING]


@dataclass(frozen=True)
class Timestamp:
    """One attack on the timestamp of a bundle.

    Attributes:
        says: What is done, for the table in the documentation.
        reply: The stored bytes, from the trusted authority and the manifest; None: there is no file.
        code: The exit code; C13 catches every one.
    """

    says: str
    reply: Callable
    code: int = 1


def by(make_signer):
    """A reply of another certificate under the authority's own root."""
    return lambda authority, manifest: Authority(authority.root, make_signer(authority.root)).reply(manifest)


def half(authority, manifest):
    reply = authority.reply(manifest)
    return reply[: len(reply) // 2]


def time_edited(authority, manifest):
    reply, year = authority.reply(manifest), NOW.strftime("%Y").encode()
    assert reply.count(year) == 1
    return reply.replace(year, b"2024")


ATTACKS = [
    Timestamp("no timestamp where the auditor requires one", lambda authority, manifest: None),
    Timestamp("a timestamp of other bytes", lambda authority, manifest: authority.reply(manifest + b" ")),
    Timestamp("a timestamp by another authority", lambda authority, manifest: Authority().reply(manifest)),
    Timestamp("a timestamp by a certificate of the same name, signed by no trusted authority", lambda authority, manifest: Authority(authority.root, holder("Test time", usages=STAMPS)).reply(manifest)),
    Timestamp("a timestamp by a certificate of the authority that is for something else", by(lambda root: holder("Test web", root, usages=[ExtendedKeyUsageOID.SERVER_AUTH]))),
    Timestamp("a timestamp by a certificate of the authority without a purpose", by(lambda root: holder("Test any", root))),
    Timestamp("a timestamp by a certificate whose purpose is not critical", by(lambda root: holder("Test soft", root, usages=STAMPS, critical=False))),
    Timestamp("a timestamp by a certificate that had expired", by(lambda root: holder("Test old", root, usages=STAMPS, valid=(NOW - 30 * DAY, NOW - 20 * DAY)))),
    Timestamp("a timestamp by a certificate that was not valid yet", by(lambda root: holder("Test new", root, usages=STAMPS, valid=(NOW + 20 * DAY, NOW + 30 * DAY)))),
    Timestamp("a timestamp whose time was edited", time_edited),
    Timestamp("a timestamp from before the run", lambda authority, manifest: authority.reply(manifest, at=NOW - 30 * DAY)),
    Timestamp("a timestamp from the future", lambda authority, manifest: authority.reply(manifest, at=NOW + 30 * DAY)),
    Timestamp("a timestamp by SHA-1", lambda authority, manifest: authority.reply(manifest, digest="sha1")),
    Timestamp("a reply that grants nothing", lambda authority, manifest: authority.reply(manifest, status="rejection")),
    Timestamp("a reply that grants something else", lambda authority, manifest: authority.reply(manifest, status="granted_with_mods")),
    Timestamp("half a reply", half),
    Timestamp("a reply with a byte after its end", lambda authority, manifest: authority.reply(manifest) + b"\0"),
    Timestamp("an empty file", lambda authority, manifest: b""),
    Timestamp("a megabyte of zeros", lambda authority, manifest: bytes(1 << 20)),
    Timestamp("brackets nested 30,000 deep", lambda authority, manifest: b"\x30\x80" * 30000),
]  # fmt: skip


def file_of(copy):
    return copy / bundles.SIGNATURES / bundles.TIMESTAMP
