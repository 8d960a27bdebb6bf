"""``glprune gate`` and ``glprune check``; neither needs PyTorch."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from glprune._escaping import escape_for_terminal

_GATE_EPILOG = (
    "Exit codes: 0 all gates passed; 1 one failed, or a file is not as sealed; 2 usage, such as a feature the "
    "bundle does not have; 3 none failed and one could not be judged; 5 no bundle. Gates trust the report's "
    "figures: let `glprune verify BUNDLE --trust KEY` come first where they are not your own."
)
_CHECK_EPILOG = (
    "Exit codes: 0 every recipe is right; 2 a mistake was found: FILE:LINE: what and how to mend it."
)
_SYSTEMS = ("auto", "github", "gitlab", "dvc", "none")
ci_option = click.option(
    "--ci",
    type=click.Choice(_SYSTEMS),
    default="none",
    show_default=True,
    help="Write for a pipeline too, beside the bundle in BUNDLE.ci; auto finds out which.",
)


class _Drop(click.ParamType):
    """``METRIC=AMOUNT``, the amount finite."""

    name = "METRIC=AMOUNT"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        metric, equals, amount = value.partition("=")
        try:
            most = float(amount)
        except ValueError:
            most = math.nan
        if not equals or not metric or not math.isfinite(most):
            self.fail(f"{value!r} is not METRIC=AMOUNT, such as auroc=0.01.", param, ctx)
        return metric, most


@click.command(epilog=_GATE_EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--max-drop", type=_Drop(), multiple=True, help="How much worse a test metric may be; repeatable."
)
@click.option(
    "--must-drop", multiple=True, metavar="FEATURE", help="A feature or column that must be gone; repeatable."
)
@click.option(
    "--must-keep", multiple=True, metavar="FEATURE", help="A feature or column that must be kept; repeatable."
)
@click.option("--max-features", type=click.IntRange(min=0), help="Most input features that may be left.")
@click.option(
    "--min-stability",
    type=click.FloatRange(0, 1),
    help="Least share of resamples that keep each kept feature.",
)
@click.option(
    "--max-latency-ratio", type=click.FloatRange(min=0), help="Most of shipped over original latency."
)
@ci_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
def gate(
    bundle: Path,
    max_drop: Sequence[tuple[str, float]],
    must_drop: Sequence[str],
    must_keep: Sequence[str],
    max_features: int | None,
    min_stability: float | None,
    max_latency_ratio: float | None,
    ci: str,
    as_json: bool,
) -> None:
    """Stop a pipeline where BUNDLE breaks a limit."""
    from glprune.integrations.ci.gate import Limits, as_outcome, as_record, judge
    from glprune.integrations.ci.systems import ci_context, publish, systems

    limits = Limits(dict(max_drop), must_drop, must_keep, max_features, min_stability, max_latency_ratio)
    where = systems(ci)
    with ci_context(where, "gate", bundle):
        decision = judge(bundle, limits)
        if as_json:
            click.echo(json.dumps(as_record(decision), indent=2))
        else:
            for found in decision.gates:
                click.echo(escape_for_terminal(f"{found.status}: {found.name}: {found.text}"))
            click.echo(decision.result)
    publish(where, as_outcome(decision), bundle)
    sys.exit(decision.exit_code)


@click.command(epilog=_CHECK_EPILOG)
@click.argument("recipes", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RECIPE...")
def check(recipes: Sequence[Path]) -> None:
    """Check recipes without their data and models; prints one line for each mistake."""
    from glprune.schema.recipe_loading import recipe_errors

    found = [mistake for recipe in recipes for mistake in recipe_errors(recipe)]
    for mistake in found:
        click.echo(escape_for_terminal(" ".join(mistake.split())), err=True)
    sys.exit(2 if found else 0)


COMMANDS = (gate, check)
