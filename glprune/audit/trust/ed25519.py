"""Refuse Ed25519 keys and signatures that an honest signer never makes.

The group of the curve has eight points of small order. A signature of a key of small order is valid for many
messages, and one key or signature in several encodings has several names. RFC 8032 leaves open what a
verifier does with them, so implementations differ.

References:
    Chalkias, Garillot and Nikolaenko (2020), Taming the many EdDSAs, SSR 2020, LNCS 12529.
"""

from __future__ import annotations

from nacl.bindings import crypto_core_ed25519_is_valid_point

_ORDER = 2**252 + 27742317777372353535851937790883648493  # of the group that the base point generates
_POINT = 32  # bytes
_SIGNATURE = 64  # bytes


def is_sound_key(key: bytes) -> bool:
    """Whether a public key is a canonical encoding of a point of prime order.

    Args:
        key: 32 bytes, as RFC 8032 encodes a point.
    """
    return len(key) == _POINT and bool(crypto_core_ed25519_is_valid_point(key))


def is_sound_signature(signature: bytes) -> bool:
    """Whether the point of a signature is of prime order, and it and the scalar are in canonical form.

    Args:
        signature: 64 bytes: a point and a scalar, as RFC 8032 encodes them.
    """
    point, scalar = signature[:_POINT], int.from_bytes(signature[_POINT:], "little")
    return len(signature) == _SIGNATURE and is_sound_key(point) and scalar < _ORDER
