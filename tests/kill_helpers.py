"""Kill runs at random moments."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

# a process that has PyTorch loaded and forks one run after another: what a kill would cost is only the run
ZYGOTE = """
import os, sys
import glprune.pipeline
from glprune.schema.recipe_loading import load_recipe
recipe, model, out = sys.argv[1:]
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        glprune.run(load_recipe(recipe), model, out, resume=True)
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


def killed_at_random(recipe: Path, model: Path, out: Path, kills: int, longest: float) -> int:
    """Kill a run that many times, each after up to so many seconds, then let it end.

    Returns:
        How many of the kills found it at work.
    """
    moments, struck = random.Random(3), 0
    with subprocess.Popen(
        [sys.executable, "-c", ZYGOTE, str(recipe), str(model), str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as zygote:
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        for number in range(kills + 1):
            print(file=zygote.stdin, flush=True)
            child = int(zygote.stdout.readline())
            if number < kills:
                time.sleep(moments.uniform(0, longest))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            code = int(zygote.stdout.readline())
            struck += code == -signal.SIGKILL
            if out.exists():
                break
            assert code != 1
        zygote.stdin.close()
    return struck
