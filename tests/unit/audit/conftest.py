"""The producer's key, keys of several people, and a signed bundle."""

import pytest

from glprune.audit import signing
from glprune.audit.checks import rendering
from tests.bundle_fixtures import copied, resign


@pytest.fixture(scope="session")
def producer(tmp_path_factory):
    """The private key of the producer, and the public keys the auditor trusts."""
    place = tmp_path_factory.mktemp("producer") / "key"
    public = signing.make_key(place)
    return signing.read_private_key(place), [signing.read_public_key(public)]


@pytest.fixture(scope="module")
def keys(people):
    """The private keys in the folder that a module names ``people``."""
    return {path.stem: signing.read_private_key(people / path.stem) for path in people.glob("*.pub")}


@pytest.fixture
def pictures_agree(monkeypatch):
    """Take the pictures of the page as those of the report, without drawing them."""
    monkeypatch.setattr(rendering, "_cannot_draw", lambda report: None)
    monkeypatch.setattr(rendering, "_drawn_alike", lambda report, page: True)


@pytest.fixture
def signed(audited, keys, tmp_path):
    """A clean bundle that the producer among ``keys`` signed."""
    copy = copied(audited["slim"], tmp_path / "bundle")
    resign(copy, keys["producer"])
    return copy
