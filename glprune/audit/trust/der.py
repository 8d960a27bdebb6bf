"""The little of DER that timestamps need: take values apart, and put the certificates of a token in order.

References:
    ITU-T X.690, section 11.6: the elements of a SET OF are in ascending order of their bytes.
    RFC 5652, section 5.1: SignedData; its certificates are not part of what is signed.
"""

from __future__ import annotations

from collections.abc import Iterator

_LONG = 0x80  # set where the length of a value has bytes of its own
_CERTIFICATES = 0xA0  # [0] of SignedData


def sequence(content: bytes) -> bytes:
    """Return an ASN.1 SEQUENCE in DER."""
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return b"\x30" + (size if len(content) < _LONG else bytes([_LONG + len(size)]) + size) + content


def with_ordered_certificates(reply: bytes) -> bytes:
    """Return the reply of a time-stamping authority with its certificates in the order of DER.

    OpenSSL sends a chain in the order of the chain, which strict readers refuse.

    Args:
        reply: A TimeStampResp; one that is none is returned as it is.
    """
    try:
        start, end = _certificates(reply)
        parts = sorted(reply[begin:stop] for begin, _, stop in _values(reply, start, end))
    except (IndexError, ValueError):
        return reply
    return reply[:start] + b"".join(parts) + reply[end:]


def _certificates(reply: bytes) -> tuple[int, int]:
    """Return begin and end of the certificates of a reply.

    Raises:
        IndexError, ValueError: It has none, or is no reply.
    """
    start, end = 0, len(reply)
    for index in (0, 1, 1, 0):  # TimeStampResp, its token, what that wraps, SignedData
        _, start, end = list(_values(reply, start, end))[index]
    found = [place for place in _values(reply, start, end) if reply[place[0]] == _CERTIFICATES]
    return found[0][1:]


def _values(raw: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the values one after another: begin, begin of the content, end.

    Raises:
        IndexError, ValueError: They do not fill the place.
    """
    while start < end:
        size, content = raw[start + 1], start + 2
        if size >= _LONG:
            content += size - _LONG
            size = int.from_bytes(raw[start + 2 : content], "big")
        if content + size > end:
            raise ValueError("a value is longer than what holds it")
        yield start, content, content + size
        start = content + size
