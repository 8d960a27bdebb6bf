"""Run ``glprune`` as ``python -m glprune.cli``."""

from glprune.cli.main import main

main()
