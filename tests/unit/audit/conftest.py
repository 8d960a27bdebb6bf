"""The producer's key."""

import pytest

from glprune.audit import signing


@pytest.fixture(scope="session")
def producer(tmp_path_factory):
    """The private key of the producer, and the public keys the auditor trusts."""
    place = tmp_path_factory.mktemp("producer") / "key"
    public = signing.make_key(place)
    return signing.read_private_key(place), [signing.read_public_key(public)]
