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
    "Exit codes: 0 all gates passed; 1 one failed, or a file does not match its digest; 2 usage, such as a "
    "feature the bundle does not have; 3 none failed, one could not be evaluated; 5 no bundle. Gates trust "
    "the report's numbers: run `glprune verify BUNDLE --trust KEY` first for bundles of others."
)
_CHECK_EPILOG = "Exit codes: 0 every recipe is valid; 2 a mistake was found: FILE:LINE: mistake and fix."
_SYSTEMS = ("auto", "github", "gitlab", "dvc", "none")
ci_option = click.option(
    "--ci",
    type=click.Choice(_SYSTEMS),
    default="none",
    show_default=True,
    help="Also write results for this CI system, into BUNDLE.ci beside the bundle; auto detects it.",
)


class _MetricAmount(click.ParamType):  # type: ignore[type-arg]  # older versions of click are not generic
    """An option value ``METRIC=AMOUNT`` with a finite amount."""

    name = "METRIC=AMOUNT"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        metric, equals, amount = value.partition("=")
        try:
            number = float(amount)
        except ValueError:
            number = math.nan
        if not equals or not metric or not math.isfinite(number):
            self.fail(f"{value!r} is not METRIC=AMOUNT, such as auroc=0.01.", param, ctx)
        return metric, number


@click.command(epilog=_GATE_EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--max-drop",
    type=_MetricAmount(),
    multiple=True,
    help="Largest allowed loss of a test metric; repeatable.",
)
@click.option(
    "--must-drop",
    multiple=True,
    metavar="FEATURE",
    help="Feature or column that must be removed; repeatable.",
)
@click.option(
    "--must-keep", multiple=True, metavar="FEATURE", help="Feature or column that must be kept; repeatable."
)
@click.option("--max-features", type=click.IntRange(min=0), help="Largest allowed number of input features.")
@click.option(
    "--min-stability",
    type=click.FloatRange(0, 1),
    help="Smallest allowed share of resamples that keep each kept feature.",
)
@click.option(
    "--max-latency-ratio",
    type=click.FloatRange(min=0),
    help="Largest allowed ratio of shipped to original latency.",
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
    """Check BUNDLE against limits, to stop a deployment pipeline that breaks one."""
    from glprune.integrations.ci.gate import Limits, as_outcome, as_record, judge
    from glprune.integrations.ci.systems import ci_context, publish, systems

    limits = Limits(dict(max_drop), must_drop, must_keep, max_features, min_stability, max_latency_ratio)
    ci_systems = systems(ci)
    with ci_context(ci_systems, "gate", bundle):
        decision = judge(bundle, limits)
        if as_json:
            click.echo(json.dumps(as_record(decision), indent=2))
        else:
            for found in decision.gates:
                click.echo(escape_for_terminal(f"{found.status}: {found.name}: {found.text}"))
            click.echo(decision.result)
    publish(ci_systems, as_outcome(decision), bundle)
    sys.exit(decision.exit_code)


@click.command(epilog=_CHECK_EPILOG)
@click.argument("recipes", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RECIPE...")
def check(recipes: Sequence[Path]) -> None:
    """Check recipes without reading data or models; print one line for each mistake."""
    from glprune.schema.recipe_loading import recipe_errors

    found = [mistake for recipe in recipes for mistake in recipe_errors(recipe)]
    for mistake in found:
        click.echo(escape_for_terminal(" ".join(mistake.split())), err=True)
    sys.exit(2 if found else 0)


COMMANDS = (gate, check)
