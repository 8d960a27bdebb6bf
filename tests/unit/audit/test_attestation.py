"""Signed statements on the original model, and their attacks."""

import json

import pytest
from click.testing import CliRunner

from glprune.audit import signing
from glprune.cli.main import main
from tests.unit.audit.attacks_attestation import ATTACKS, NO_STATEMENTS

pytestmark = pytest.mark.usefixtures("pictures_agree")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    for name in ("producer", "owner", "stranger"):
        signing.make_key(folder / name)
    return folder


def invoke(*words):
    return CliRunner().invoke(main, [str(w) for w in words])


@pytest.fixture
def statement(audited, people, tmp_path):
    """The owner's statement on the network that the bundle was made from."""
    path = tmp_path / "statement.json"
    words = ("--statement", "Trained by us.", "--out", path)
    done = invoke("attest-original", audited.folder / "plain.pt", "--key", people / "owner", *words)
    assert done.exit_code == 0, done.output
    return path


def verified(signed, people, statement, trust=("producer=producer", "owner=owner")):
    """What `verify --json` prints, and its C14."""
    texts = [text.rpartition("=") for text in trust]
    given = [word for r, e, name in texts for word in ("--trust", f"{r}{e}{people / name}.pub")]
    done = invoke("verify", signed.folder, *given, "--expect-original", statement, "--json")
    if done.exit_code == 2:
        return done, None
    record = json.loads(done.stdout)
    return done, next(c for c in record["trust"] if c["id"] == "C14")


def test_a_statement_by_a_trusted_key_is_accepted_and_its_signer_named(signed, people, keys, statement):
    done, check = verified(signed, people, statement)
    assert done.exit_code == 0, done.stdout
    assert f"original attested by owner ({keys['owner'].public_key.keyid[:12]}) on 2" in check["note"]
    assert "who says 'Trained by us.'" in check["note"]
    assert "the same key" not in check["note"]


def test_a_producer_who_attests_the_original_is_named_as_both(signed, audited, people, tmp_path):
    path = tmp_path / "own.json"
    invoke("attest-original", audited.folder / "plain.pt", "--key", people / "producer", "--out", path)
    done, check = verified(signed, people, path, ("producer",))
    assert done.exit_code == 0
    assert check["note"].endswith("the same key signed the bundle as producer")


def test_another_role_is_accepted_for_a_key_that_has_it(signed, audited, people, tmp_path):
    path = tmp_path / "s.json"
    words = ("--key", people / "owner", "--role", "model-risk", "--out", path)
    invoke("attest-original", audited.folder / "plain.pt", *words)
    done, check = verified(signed, people, path, ("producer=producer", "model-risk=owner"))
    assert done.exit_code == 0
    assert "attested by model-risk (" in check["note"]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.says)
def test_an_attack_with_a_statement_is_caught(attack, signed, people, keys, statement):
    attack.change(statement, keys, signed.folder)
    done, check = verified(signed, people, statement, attack.trust)
    assert done.exit_code == attack.code, done.stdout
    assert check["status"] == ("incomplete" if attack.code == 3 else "failed")


@pytest.mark.parametrize("change", NO_STATEMENTS.values(), ids=list(NO_STATEMENTS))
def test_a_file_that_is_no_statement_is_refused_in_one_line(change, signed, people, keys, statement):
    change(statement, keys, signed.folder)
    done, _ = verified(signed, people, statement)
    assert done.exit_code == 2
    assert "is not from `glprune attest-original`" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_digest_and_the_file_itself_are_accepted_still(signed, audited, people):
    assert verified(signed, people, audited.folder / "plain.pt")[0].exit_code == 0
    assert verified(signed, people, signed.json()["digests"]["model"])[0].exit_code == 0
    assert verified(signed, people, audited.folder / "Mixed.pt")[0].exit_code == 1


def test_a_statement_is_written_beside_the_model_and_never_over_a_file(audited, people, tmp_path):
    model = tmp_path / "model.pt"
    model.write_bytes(b"weights")
    words = ("attest-original", model, "--key", people / "owner")
    assert invoke(*words).exit_code == 0
    assert (tmp_path / "model.pt.attestation.json").exists()
    again = invoke(*words)
    assert again.exit_code == 2
    assert "exists; remove it or name another --out." in again.stderr
    assert invoke(*words, "--out", model).exit_code == 2
    assert model.read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.pt"], "absent.pt cannot be read"),
        (["."], ". is a folder, not a file; name the file with the trained weights."),
        (["{model}", "--role", "The Owner"], "role 'The Owner': use lower-case letters"),
        (["{model}", "--out", "absent/x.json"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line(words, message, audited, people):
    model = audited.folder / "plain.pt"
    done = invoke("attest-original", *[w.format(model=model) for w in words], "--key", people / "owner")
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
