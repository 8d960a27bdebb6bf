"""RFC 3161 timestamps of a manifest, by an authority that the tests make themselves."""

import random
import sys

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding

from glprune.audit import signing
from glprune.audit.trust.der import with_ordered_certificates
from glprune.audit.trust.timestamps import check_timestamp, read_authority
from glprune.audit.verify import VerificationOptions, verify
from glprune.cli.main import main
from glprune.schema import bundle as bundles
from tests.bundle_fixtures import copied, resign
from tests.integration_packages import need

need("rfc3161_client")
need("asn1crypto")
from rfc3161_client import decode_timestamp_response  # noqa: E402

from tests.timestamp_authority import NOW, Authority, holder  # noqa: E402
from tests.unit.audit.attacks_timestamps import ATTACKS, STAMPS, file_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("pictures_agree")


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, authority):
    """Keys of a producer, and the root of the authority."""
    folder = tmp_path_factory.mktemp("people")
    signing.make_key(folder / "producer")
    (folder / "root.pem").write_bytes(authority.root.pem)
    return folder


@pytest.fixture
def signed(audited, folder, tmp_path):
    copy = copied(audited["slim"], tmp_path / "bundle")
    resign(copy, signing.read_private_key(folder / "producer"))
    return copy


def invoke(*words):
    return CliRunner().invoke(main, [str(w) for w in words])


def manifest(copy):
    return (copy / bundles.MANIFEST).read_bytes()


def people(verdict):
    return next(c for c in verdict.checks if c.id == "C13")


def verified(copy, folder, chain="root.pem"):
    options = VerificationOptions(
        trust=[signing.read_public_key(folder / "producer.pub")],
        authority=read_authority(folder / chain) if chain else None,
    )
    return verify(copy.folder, options, isolated=False)


@pytest.mark.parametrize("form", ["reply", "token"])
def test_a_timestamp_is_attached_when_signing_and_verified_offline(
    form, audited, authority, folder, tmp_path
):
    copy = copied(audited["slim"], tmp_path / "bundle")
    made = getattr(authority, form)(manifest(copy))
    (tmp_path / "stamp").write_bytes(made if form == "reply" else made.dump())
    done = invoke("sign", copy.folder, "--key", folder / "producer", "--timestamp-token", tmp_path / "stamp")
    assert done.exit_code == 0, done.output
    words = ("--trust", folder / "producer.pub", "--timestamp-authority", folder / "root.pem")
    shown = invoke("verify", copy.folder, *words)
    assert shown.exit_code == 0, shown.stdout
    assert f"manifest stamped at {NOW.isoformat()}" in " ".join(shown.stdout.split())


def test_a_timestamp_without_an_authority_to_trust_is_incomplete(signed, authority, folder):
    file_of(signed).write_bytes(authority.reply(manifest(signed)))
    verdict = verified(signed, folder, None)
    assert verdict.exit_code == 3
    assert "--timestamp-authority" in people(verdict).note


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.says)
def test_an_attack_with_a_timestamp_is_caught(attack, signed, authority, folder):
    reply = attack.reply(authority, manifest(signed))
    if reply is not None:
        file_of(signed).write_bytes(reply)
    verdict = verified(signed, folder)
    assert verdict.exit_code == attack.code
    assert {c.id for c in verdict.checks if c.status == "failed"} == {"C13"}, people(verdict)


def test_a_manifest_that_is_made_anew_needs_another_timestamp(signed, authority, folder):
    from tests.bundle_fixtures import follow, seal

    file_of(signed).write_bytes(authority.reply(manifest(signed)))
    signed.edit(lambda r: r.update(title="another"))
    follow(signed)
    seal(signed, signing.read_private_key(folder / "producer"))
    verdict = verified(signed, folder)
    assert [f.what for f in people(verdict).findings] == ["is a timestamp of other bytes than MANIFEST.json"]


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_longer_digests_are_read(digest, signed, authority, folder):
    file_of(signed).write_bytes(authority.reply(manifest(signed), digest=digest))
    assert verified(signed, folder).exit_code == 0


def test_a_chain_is_given_in_one_file(signed, folder):
    root = holder("Far root", is_ca=True)
    middle = holder("Middle", root, is_ca=True)
    signer = holder("Near time", middle, usages=STAMPS)
    authority = Authority(root, signer)
    file_of(signed).write_bytes(authority.reply(manifest(signed)))
    (folder / "chain.pem").write_bytes(signer.pem + middle.pem + root.pem)
    assert verified(signed, folder, "chain.pem").exit_code == 0
    (folder / "short.pem").write_bytes(root.pem)
    assert verified(signed, folder, "short.pem").exit_code == 1
    file_of(signed).write_bytes(authority.reply(manifest(signed), certificates=False))
    assert verified(signed, folder, "chain.pem").exit_code == 0


def test_the_certificates_of_a_reply_may_be_in_any_order(signed, authority, folder, tmp_path):
    """OpenSSL sends a chain unsorted, which the strict library refuses; they are not part of what is signed."""
    reply = authority.reply_of_openssl(manifest(signed))
    with pytest.raises(ValueError, match="InvalidSetOrdering"):
        decode_timestamp_response(reply)
    (tmp_path / "stamp").write_bytes(reply)
    done = invoke(
        "sign", signed.folder, "--key", folder / "producer", "--timestamp-token", tmp_path / "stamp"
    )
    assert done.exit_code == 0, done.output
    assert verified(signed, folder).exit_code == 0
    file_of(signed).write_bytes(Authority().reply_of_openssl(manifest(signed)))
    assert verified(signed, folder).exit_code == 1


def test_a_reply_that_cannot_be_read_names_the_cause(signed, authority, folder, tmp_path):
    (tmp_path / "stamp").write_bytes(authority.reply(manifest(signed))[:-1])
    done = invoke(
        "sign", signed.folder, "--key", folder / "producer", "--timestamp-token", tmp_path / "stamp"
    )
    assert done.exit_code == 2
    assert "nor its token (ASN.1 parse error" in done.output


@pytest.mark.parametrize(
    "raw", [b"", b"\x30", b"\x30\x80", b"\x30\xff" + b"\xff" * 127, b"\x30\x03\x30\x05\x00"]
)
def test_what_is_no_reply_is_left_as_it_is(raw):
    assert with_ordered_certificates(raw) == raw


def test_the_signers_certificate_pins_it_where_it_is_given(signed, authority, folder):
    other = Authority(authority.root, holder("Second time", authority.root, usages=STAMPS))
    file_of(signed).write_bytes(other.reply(manifest(signed)))
    assert verified(signed, folder).exit_code == 0
    (folder / "pinned.pem").write_bytes(authority.signer.pem + authority.root.pem)
    assert verified(signed, folder, "pinned.pem").exit_code == 1


def test_a_certificate_may_have_expired_since(signed, authority, folder):
    from tests.timestamp_authority import DAY

    brief = holder("Brief time", authority.root, usages=STAMPS, valid=(NOW - 2 * DAY, NOW - DAY / 2))
    stamped = NOW - DAY * 3 / 4  # within the tolerance of clocks before the run
    file_of(signed).write_bytes(Authority(authority.root, brief).reply(manifest(signed), at=stamped))
    assert verified(signed, folder).exit_code == 0


def test_mutated_replies_never_end_the_audit_nor_change_the_time(authority, folder):
    rng, raw, trusted = random.Random(0), authority.reply(b"manifest"), read_authority(folder / "root.pem")
    notes = set()
    for _ in range(1500):
        mutated = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(mutated))
            if rng.random() < 0.8:
                mutated[place] = rng.randrange(256)
            else:
                del mutated[place : place + rng.randint(1, 20)]
        stamp = check_timestamp(bytes(mutated), b"manifest", trusted, NOW.isoformat())
        assert bool(stamp.findings) != bool(stamp.note)
        notes.add(stamp.note)
    assert notes <= {"", f"manifest stamped at {NOW.isoformat()}"}
    assert "" in notes


def test_without_the_library_nothing_is_said_to_be_verified(signed, authority, folder, tmp_path, monkeypatch):
    file_of(signed).write_bytes(authority.reply(manifest(signed)))
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    verdict = verified(signed, folder)
    assert verdict.exit_code == 3
    assert "pip install 'glprune[timestamp]'" in people(verdict).note
    (tmp_path / "stamp").write_bytes(authority.reply(manifest(signed)))
    done = invoke(
        "sign", signed.folder, "--key", folder / "producer", "--timestamp-token", tmp_path / "stamp"
    )
    assert done.exit_code == 2
    assert "pip install 'glprune[timestamp]'" in done.stderr


def put(name, content):
    return lambda place, authority: (place / name).write_bytes(content(authority))


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (None, ["sign", "--timestamp-token", "absent"], "absent cannot be read"),
        (put("stamp", lambda a: b"{}"), ["sign", "--timestamp-token", "stamp"], "stamp is not a granted reply"),
        (put("stamp", lambda a: a.reply(b"x")), ["sign", "--timestamp-token", "stamp"], "of other bytes than MANIFEST.json"),
        (put("stamp", lambda a: a.reply(b"x", digest="sha1")), ["sign", "--timestamp-token", "stamp"], "uses the digest 1.3.14.3.2.26"),
        (None, ["verify", "--timestamp-authority", "absent"], "absent cannot be read"),
        (put("pem", lambda a: b"x"), ["verify", "--timestamp-authority", "pem"], "pem holds no certificates in PEM"),
        (put("pem", lambda a: a.signer.pem), ["verify", "--timestamp-authority", "pem"], "no self-signed certificate"),
        (put("pem", lambda a: a.root.pem + a.signer.pem + holder("t", a.root, usages=STAMPS).pem), ["verify", "--timestamp-authority", "pem"], "several that sign"),
        (put("pem", lambda a: a.root.certificate.public_bytes(Encoding.DER)), ["verify", "--timestamp-authority", "pem"], "no certificates in PEM"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(make, words, message, signed, authority, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if make:
        make(tmp_path, authority)
    before = sorted(signed.folder.rglob("*"))
    key = ["--key", folder / "producer"] if words[0] == "sign" else []
    done = invoke(words[0], signed.folder, *key, *words[1:])
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(signed.folder.rglob("*")) == before
