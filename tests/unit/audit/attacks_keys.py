"""Attacks with keys and roles: weak keys, signatures that only a dishonest signer makes, one person as two."""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from nacl.bindings import crypto_core_ed25519_add
from securesystemslib.dsse import Envelope

from glprune.audit import signing
from glprune.schema import bundle as bundles
from glprune.schema.strict_json import read_json

PRIME = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
SIGN_BIT = 1 << 255
SOUND = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
OF_ORDER_8 = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")


def encoded(y):
    return y.to_bytes(32, "little")


def times(point, count):
    """The sum of ``count`` copies of a point."""
    total = point
    for _ in range(count - 1):
        total = crypto_core_ed25519_add(total, point)
    return total


def is_read(key):
    """Whether the library that verifies takes these bytes for a key."""
    try:
        Ed25519PublicKey.from_public_bytes(key)
    except ValueError:
        return False
    return True


WEAK_KEYS = (
    {f"point of small order, {n} times one of order 8": times(OF_ORDER_8, n) for n in range(1, 9)}
    | {f"honest key and {n} times a point of order 8": crypto_core_ed25519_add(SOUND, times(OF_ORDER_8, n)) for n in range(1, 8)}
    | {f"key written in two ways, as {y} and the prime": encoded(PRIME + y) for y in range(19)}
    | {f"key written in two ways, as {y} and the prime, negative": encoded(PRIME + y + SIGN_BIT) for y in range(19)}
    | {f"key with a negative zero, y = {name}": encoded(y + SIGN_BIT) for name, y in (("1", 1), ("-1", PRIME - 1))}
    | {"point off the curve": encoded(2)}
)  # fmt: skip
WEAK_KEYS = {name: key for name, key in WEAK_KEYS.items() if is_read(key)}


# --------------------------------------------------------------------------- forged signatures


def _scalar(signer):
    digest = bytearray(hashlib.sha512(signer._private_key.private_bytes_raw()).digest()[:32])
    digest[0] &= 248
    digest[31] = digest[31] & 127 | 64
    return int.from_bytes(digest, "little")


def _challenge(point, signer, message):
    key = bytes.fromhex(signer.public_key.keyval["public"])
    return int.from_bytes(hashlib.sha512(point + key + message).digest(), "little")


def producer_file():
    return f"{bundles.SIGNATURES}/producer.dsse.json"


def edit_signature(copy, change):
    """Put another signature of the same length or not into the producer's envelope."""

    def edit(envelope):
        message = Envelope.from_dict(read_json((copy / producer_file()).read_bytes())).pae()
        old = b64decode(envelope["signatures"][0]["sig"])
        envelope["signatures"][0]["sig"] = b64encode(change(old, message)).decode()

    copy.edit(edit, producer_file())


def neutral_point(copy, keys):
    """Sign with the nonce 0: the equation holds, and the signature gives the private key away."""
    signer = keys["producer"]
    edit_signature(
        copy,
        lambda old, message: (
            encoded(1) + encoded(_challenge(encoded(1), signer, message) * _scalar(signer) % ORDER)
        ),
    )


def scalar_beyond_the_order(copy, keys):
    edit_signature(copy, lambda old, _: old[:32] + encoded(int.from_bytes(old[32:], "little") + ORDER))


def point_of_order_8(copy, keys):
    edit_signature(copy, lambda old, _: OF_ORDER_8 + old[32:])


def point_in_another_form(copy, keys):
    edit_signature(copy, lambda old, _: encoded(PRIME + 1) + old[32:])


def signature_too_long(copy, keys):
    edit_signature(copy, lambda old, _: old + b"\0")


def signature_too_short(copy, keys):
    edit_signature(copy, lambda old, _: old[:-1])


@dataclass(frozen=True)
class Signatures:
    """One attack on signatures.

    Attributes:
        says: What is done, for the table in the documentation.
        change: Changes the signatures of a bundle that its producer signed.
        check: The check that catches it.
        code: The exit code.
        trust: Values of --trust, by the names of keys.
        roles: Values of --require-role.
    """

    says: str
    change: Callable
    check: str
    code: int = 1
    trust: tuple[str, ...] = ("producer",)
    roles: tuple[str, ...] = ()


BOUND = ("producer=producer", "validator=validator")


def countersigned(*who, role="validator"):
    """Let holders of keys countersign, the last one overwriting the others."""

    def change(copy, keys):
        manifest = (copy / bundles.MANIFEST).read_bytes()
        for name in who:
            signing.countersign(copy.folder, manifest, keys[name], role, "Read and rerun.")

    return change


def produced_by(who):
    def change(copy, keys):
        signing.sign(copy.folder, (copy / bundles.MANIFEST).read_bytes(), keys[who])

    return change


def in_turn(*changes):
    def change(copy, keys):
        for one in changes:
            one(copy, keys)

    return change


def signed_by_both(copy, keys):
    """The producer's envelope with the validator's signature beside the producer's."""
    envelope = Envelope.from_dict(read_json((copy / producer_file()).read_bytes()))
    envelope.sign(keys["validator"])
    copy.write(envelope.to_dict(), producer_file())


ATTACKS = [
    Signatures("a signature with the neutral point, valid by the equation alone", neutral_point, "C3"),
    Signatures("a signature with the group order added to its scalar", scalar_beyond_the_order, "C3"),
    Signatures("a signature with a point of order 8", point_of_order_8, "C3"),
    Signatures("a signature whose point is written in a second way", point_in_another_form, "C3"),
    Signatures("a signature with a byte too many", signature_too_long, "C3"),
    Signatures("a signature with a byte missing", signature_too_short, "C3"),
    Signatures("one person as producer and validator, with two keys that are trusted in any role", countersigned("second"), "C13", 3, ("producer", "second"), ("validator",)),
    Signatures("the same, with no role required", countersigned("second"), "C13", 3, ("producer", "second")),
    Signatures("the same, with a role for the producer's first key alone", countersigned("second"), "C13", 3, ("producer=producer", "second"), ("validator",)),
    Signatures("the same, with a role for the second key alone", countersigned("second"), "C13", 3, ("producer", "validator=second"), ("validator",)),
    Signatures("the producer's second key as validator, where the validator's key is bound", countersigned("second"), "C3", 1, BOUND, ("validator",)),
    Signatures("the producer's first key as validator, both bound", countersigned("producer"), "C3", 1, BOUND, ("validator",)),
    Signatures("the producer's first key as validator, not required", countersigned("producer"), "C3", 1, BOUND),
    Signatures("the producer's first key as validator, trusted in both roles", countersigned("producer"), "C13", 1, ("producer=producer", "validator=producer"), ("validator",)),
    Signatures("the validator's key as producer", produced_by("validator"), "C3", 1, BOUND),
    Signatures("producer's and validator's keys exchanged", in_turn(produced_by("validator"), countersigned("producer")), "C3", 1, BOUND, ("validator",)),
    Signatures("the validator's key in a third role", in_turn(countersigned("validator"), countersigned("validator", role="owner")), "C3", 1, BOUND, ("validator",)),
    Signatures("the validator's signature inside the producer's envelope", in_turn(countersigned("validator"), signed_by_both), "C3", 1, BOUND, ("validator",)),
    Signatures("a validator whose key was not given", countersigned("validator"), "C3", 1, ("producer=producer",), ("validator",)),
    Signatures("a validator who did not sign", in_turn(), "C3", 1, BOUND, ("validator",)),
]  # fmt: skip
