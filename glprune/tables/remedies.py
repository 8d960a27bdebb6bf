"""Ends of messages that name a key of the recipe, and their removal for readers who cannot change it."""

from __future__ import annotations

import re

RELATIVE = ", relative to the recipe"
UNLISTED = "which data.classes does not list"
PROTECT_COLUMN = "list a column under policy.protected instead"
_FOR_AUDITORS = {
    RELATIVE: "",
    UNLISTED: "which is no class of the report",
    PROTECT_COLUMN: "correct or drop the row",
}
_OR_LIST = re.compile(r", or list (?:[^;]{1,200} )?under data\.[a-z]+")


def or_list(key: str, what: str = "") -> str:
    """Return the end of a message that offers to list something under a key of ``data``.

    Args:
        key: ``exclude`` or ``classes``.
        what: What to list; empty where the message has just named it.
    """
    return f", or list {f'{what} ' if what else ''}under data.{key}"


def for_auditor(message: str) -> str:
    """Return a message on a data file without remedies in the recipe, which an auditor only reads."""
    message = _OR_LIST.sub("", message)
    for remedy, other in _FOR_AUDITORS.items():
        message = message.replace(remedy, other)
    return message
