"""What a path is before it is read: a pipe would wait for ever, a device never ends."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def unreadable_reason(path: Path) -> str | None:
    """Why a path cannot be read as a plain file, to follow its name in a message; None where it can."""
    try:
        kind = path.stat().st_mode
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError as error:  # a null byte in the name
        return f"cannot be read ({error})"
    if stat.S_ISDIR(kind):
        return "is a folder, not a file"
    if not stat.S_ISREG(kind):
        return "is a pipe or device, not a file"
    return None if os.access(path, os.R_OK) else "cannot be read (Permission denied)"
