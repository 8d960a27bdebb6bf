"""Attacks with statements on the original model."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass

from glprune.audit import signing
from glprune.schema import bundle as bundles


@dataclass(frozen=True)
class Statement:
    """One attack on a statement that its owner signed.

    Attributes:
        says: What is done, for the table in the documentation.
        change: Takes the statement's file, the keys and the bundle's folder; changes the file.
        code: The exit code; C14 catches every one.
        trust: Values of --trust, by the names of keys.
    """

    says: str
    change: Callable
    code: int = 1
    trust: tuple[str, ...] = ("producer=producer", "owner=owner")


def payload(change):
    """Change the signed statement and leave the signature as it is."""

    def edit(path, keys, folder):
        envelope = json.loads(path.read_text())
        value = json.loads(b64decode(envelope["payload"]))
        change(value)
        envelope["payload"] = b64encode(json.dumps(value).encode()).decode()
        path.write_text(json.dumps(envelope))

    return edit


def signed_again(change, who="owner"):
    """Change the statement and sign it again."""

    def edit(path, keys, folder):
        value = json.loads(b64decode(json.loads(path.read_text())["payload"]))
        change(value)
        signing.write_envelope(path, json.dumps(value).encode(), keys[who])

    return edit


def other_digest(value):
    value["subject"][0]["digest"]["sha256"] = "0" * 64


def later(value):
    value["predicate"]["signed_at"] = "2999-01-01T00:00:00+00:00"


def no_zone(value):
    value["predicate"]["signed_at"] = "2026-01-01T00:00:00"


def role(name):
    return lambda value: value["predicate"].update(role=name)


def strangers_under_the_owners_id(path, keys, folder):
    signed_again(lambda value: None, "stranger")(path, keys, folder)
    envelope = json.loads(path.read_text())
    envelope["signatures"][0]["keyid"] = keys["owner"].public_key.keyid
    path.write_text(json.dumps(envelope))


def another_original(path, keys, folder):
    """The producer names another original in report, page and manifest."""
    from tests.bundle_fixtures import Copy, follow, seal

    copy = Copy(folder)
    copy.edit(lambda r: r["digests"].update(model="sha256:" + "1" * 64))
    follow(copy)
    seal(copy, keys["producer"])


ATTACKS = [
    Statement("a statement on another file", signed_again(other_digest)),
    Statement("a statement whose digest was edited", payload(other_digest)),
    Statement("a report that names another original than the statement", another_original),
    Statement("a statement by a stranger", signed_again(lambda value: None, "stranger")),
    Statement("a stranger's signature under the owner's key id", strangers_under_the_owners_id),
    Statement("a statement by the producer's own key, where the owner's is bound", signed_again(lambda value: None, "producer")),
    Statement("a statement as validator by the producer's key, which is bound to another role", signed_again(role("validator"), "producer")),
    Statement("the owner's key in a role that is not the owner's", signed_again(role("validator"))),
    Statement("a statement from the future", signed_again(later)),
    Statement("a statement without a time zone", signed_again(no_zone)),
    Statement("a signed statement without a key to trust", lambda *_: None, 3, ()),
    Statement("a statement cut in half", lambda path, *_: path.write_bytes(path.read_bytes()[:300])),
]  # fmt: skip

NO_STATEMENTS = {
    "a countersignature": lambda path, keys, folder: path.write_bytes(
        signing.countersign(
            folder, (folder / bundles.MANIFEST).read_bytes(), keys["owner"], "owner", "x"
        ).read_bytes()
    ),
    "the producer's signature": lambda path, keys, folder: path.write_bytes(
        (folder / bundles.SIGNATURES / "producer.dsse.json").read_bytes()
    ),
    "a report": lambda path, keys, folder: path.write_bytes((folder / bundles.REPORT).read_bytes()),
    "two subjects": signed_again(lambda value: value["subject"].append(value["subject"][0])),
    "no subject": signed_again(lambda value: value["subject"].clear()),
    "an unknown key": signed_again(lambda value: value.update(note="x")),
    "another predicate": signed_again(lambda value: value.update(predicateType="urn:x")),
}
"""Files that --expect-original refuses before the bundle is read: exit code 2."""
