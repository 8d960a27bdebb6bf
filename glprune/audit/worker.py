"""The process that verifies a bundle for ``isolation``: a request in, a line for each check out."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace

from glprune.audit.findings import UnreadableError
from glprune.audit.isolation import Request, line_of
from glprune.audit.limits import limit_memory, limit_time
from glprune.audit.steps import Steps
from glprune.audit.verify import runnable_steps, verify_steps

_NO_LIMIT = "Limits of memory: this system sets none."


def main() -> None:
    """Do what the request says."""
    request: Request = pickle.loads(sys.stdin.buffer.read())  # from the process that started this one
    limited = limit_memory(request.memory)
    limit_time(request.checking)
    steps = Steps(
        request.known,
        request.seconds,
        begin=lambda name: print(line_of("begin", name), flush=True),
        done=lambda check: print(line_of("check", check), flush=True),
    )
    try:
        checks = runnable_steps if request.before_running else verify_steps
        verdict = checks(request.folder, request.options, steps)
    except UnreadableError as error:
        print(line_of("unreadable", str(error)), flush=True)
        return
    if not limited:
        verdict = replace(verdict, not_checked=(_NO_LIMIT, *verdict.not_checked))
    print(line_of("verdict", verdict), flush=True)


if __name__ == "__main__":
    main()
