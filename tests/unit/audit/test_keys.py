"""Keys bound to roles, and keys and signatures of Ed25519 that no honest signer makes."""

from base64 import b64encode

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import SSlibKey

from glprune.audit import signing
from glprune.audit.trust.ed25519 import is_sound_key, is_sound_signature
from glprune.audit.trust.roles import read_trust
from glprune.audit.verify import VerificationOptions, verify
from glprune.cli.main import main
from glprune.errors import UsageError
from tests.unit.audit.attacks_keys import ATTACKS, BOUND, WEAK_KEYS, countersigned, neutral_point

pytestmark = pytest.mark.usefixtures("pictures_agree")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A folder of key pairs; the producer has a second one."""
    folder = tmp_path_factory.mktemp("people")
    for name in ("producer", "second", "validator"):
        signing.make_key(folder / name)
    return folder


def options(people, trust, roles=()):
    """The options of a command line whose keys are given by name."""
    texts = []
    for text in trust:
        role, equals, name = text.rpartition("=")
        texts.append(f"{role}{equals}{people / name}.pub")
    trusted = read_trust(texts)
    return VerificationOptions(trust=trusted.keys, key_roles=trusted.roles, roles=roles)


def told(verdict):
    return "\n".join(f"{c.id} {c.status} {c.note} {[str(f) for f in c.findings]}" for c in verdict.checks)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.says)
def test_an_attack_with_signatures_is_caught(attack, signed, people, keys):
    attack.change(signed, keys)
    verdict = verify(signed.folder, options(people, attack.trust, attack.roles), isolated=False)
    assert verdict.exit_code == attack.code, told(verdict)
    caught = {c.id for c in verdict.checks if c.status in ("failed", "incomplete")}
    assert attack.check in caught, told(verdict)
    assert caught <= {"C3", "C13"}, told(verdict)


@pytest.mark.parametrize("roles", [(), ("validator",), ("producer", "validator")])
def test_two_people_with_bound_keys_verify(roles, signed, people, keys):
    countersigned("validator")(signed, keys)
    verdict = verify(signed.folder, options(people, BOUND, roles), isolated=False)
    assert verdict.exit_code == 0, told(verdict)
    assert verdict.signature.startswith("signed by producer (")
    assert "validator (" in verdict.signature


def test_a_role_may_have_several_keys_and_the_others_need_not_sign(signed, people, keys):
    countersigned("validator")(signed, keys)
    trust = (*BOUND, "validator=second", "validator=validator")
    assert verify(signed.folder, options(people, trust, ("validator",)), isolated=False).exit_code == 0


def test_a_countersignature_by_a_key_that_is_not_trusted_needs_no_bound_keys(signed, people, keys):
    countersigned("validator")(signed, keys)
    assert verify(signed.folder, options(people, ("producer",)), isolated=False).exit_code == 0


@pytest.mark.parametrize("name", WEAK_KEYS)
def test_a_weak_key_is_refused_as_a_file_and_as_a_record(name, signed, tmp_path):
    assert not is_sound_key(WEAK_KEYS[name])
    key = Ed25519PublicKey.from_public_bytes(WEAK_KEYS[name])
    path = tmp_path / "weak.pub"
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UsageError, match=r"weak\.pub is an Ed25519 key of small or mixed order"):
        read_trust([f"producer={path}"])


def test_anybody_can_sign_for_a_key_of_small_order(signed):
    key = SSlibKey.from_crypto(
        Ed25519PublicKey.from_public_bytes(WEAK_KEYS["point of small order, 8 times one of order 8"])
    )
    zero = bytes.fromhex(key.keyval["public"]) + bytes(32)  # the equation holds for every message
    Ed25519PublicKey.from_public_bytes(zero[:32]).verify(zero, b"any message")

    def sign(envelope):
        envelope["signatures"] = [{"keyid": key.keyid, "sig": b64encode(zero).decode()}]

    signed.edit(sign, "signatures/producer.dsse.json")
    verdict = verify(signed.folder, VerificationOptions(trust=[key]), isolated=False)
    assert verdict.exit_code == 1
    assert "of small or mixed order" in told(verdict)


def test_the_neutral_point_satisfies_the_equation_and_is_refused(signed, keys):
    """Without the check of the form this signature is valid."""
    neutral_point(signed, keys)
    signature = signed.json("signatures/producer.dsse.json")["signatures"][0]["sig"]
    assert signature.startswith("AQAAAA")
    verdict = verify(signed.folder, VerificationOptions(trust=[keys["producer"].public_key]), isolated=False)
    assert "holds a point of small or mixed order" in told(verdict)


def test_honest_keys_and_signatures_are_sound():
    for _ in range(50):
        key = Ed25519PrivateKey.generate()
        assert is_sound_key(key.public_key().public_bytes_raw())
        assert is_sound_signature(key.sign(b"message"))
    assert not is_sound_key(b"")
    assert not is_sound_signature(b"")


def invoke(*words):
    return CliRunner().invoke(main, [str(w) for w in words])


def test_the_command_line_binds_keys(signed, people, keys):
    countersigned("validator")(signed, keys)
    bound = ["--trust", f"producer={people}/producer.pub", "--trust", f"validator={people}/validator.pub"]
    assert invoke("verify", signed.folder, *bound, "--require-role", "validator").exit_code == 0
    loose = ["--trust", f"{people}/producer.pub", "--trust", f"{people}/validator.pub"]
    done = invoke("verify", signed.folder, *loose, "--require-role", "validator")
    assert done.exit_code == 3
    assert "bind them with --trust ROLE=KEY" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trust", "Validator={p}/validator.pub"], "role 'Validator': use lower-case letters"),
        (["--trust", "={p}/validator.pub"], "role '': use lower-case letters"),
        (["--trust", "validator="], "name a PEM file"),
        (["--trust", "validator={p}/absent.pub"], "absent.pub cannot be read"),
        (["--trust", "{p}/producer.pub", "--trust", "producer={p}/producer.pub"], "with a role and without"),
        (["--trust", "{p}/producer.pub", "--require-role", "Validator"], "role 'Validator': use lower-case"),
        (["--trust", "{p}/producer.pub", "--require-role", "validator\n"], "use lower-case letters"),
    ],
)
def test_a_wrong_key_or_role_is_one_line(words, message, signed, people):
    done = invoke("verify", signed.folder, *[w.format(p=people) for w in words])
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_path_with_an_equals_sign_is_written_with_its_folder(signed, people, tmp_path):
    (tmp_path / "a=b.pub").write_bytes((people / "producer.pub").read_bytes())
    assert invoke("verify", signed.folder, "--trust", tmp_path / "a=b.pub").exit_code == 0


def test_signatures_by_no_trusted_key_are_named_and_not_counted(signed, people, keys):
    countersigned("validator")(signed, keys)
    verdict = verify(signed.folder, options(people, ("producer=producer",)), isolated=False)
    assert verdict.exit_code == 0
    assert "Who signed as validator: by no key given with --trust." in verdict.not_checked
    assert next(c.note for c in verdict.checks if c.id == "C13") == "1 verified signature"
