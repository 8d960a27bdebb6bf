"""Check a path before it is used: a pipe may block, a device may never end, and libraries take UTF-8."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def unreadable_reason(path: Path) -> str | None:
    """Return why a path cannot be read as a regular file, to follow its name in a message; None if it can."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError as error:  # a null byte in the name
        return f"cannot be read ({error})"
    if stat.S_ISDIR(mode):
        return "is a folder, not a file"
    if not stat.S_ISREG(mode):
        return "is a pipe or device, not a file"
    return None if os.access(path, os.R_OK) else "cannot be read (Permission denied)"


def is_utf8(path: Path) -> bool:
    """Return whether a path can be passed to libraries that take UTF-8 alone, such as ONNX Runtime."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
