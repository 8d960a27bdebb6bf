"""Run the command line as ``python -m glprune``."""

from glprune.cli.main import main

main(prog_name="glprune")
