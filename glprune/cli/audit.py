"""The commands for auditors: verify, keygen, sign, countersign, diff, explain, render. None needs PyTorch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glprune.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

_VERIFY_EPILOG = (
    "Exit codes: 0 verified; 1 a check failed; 2 usage; 3 incomplete: something in the bundle could not be "
    "checked, such as a signature without --trust; 4 policy violated; 5 unreadable or unknown schema."
)
_MAX_TIMEOUT = 86_400  # seconds
_path = click.Path(path_type=Path)
_bundle = click.argument("bundle", type=_path)
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
_key = click.option(
    "--key", type=_path, required=True, help="Your private key: a PEM file, Ed25519 or ECDSA."
)


def _seconds(context: click.Context, option: click.Parameter, value: float) -> float:
    if not 1 <= value <= _MAX_TIMEOUT:  # nor is it NaN
        raise click.BadParameter(f"{value:g} is not between 1 and {_MAX_TIMEOUT:,}.")
    return value


@click.command(epilog=_VERIFY_EPILOG)
@_bundle
@click.option(
    "--trust",
    type=_path,
    multiple=True,
    metavar="KEY",
    help="Public key (PEM file) that you trust; repeatable.",
)
@click.option(
    "--require-role",
    "roles",
    multiple=True,
    metavar="ROLE",
    help="Require a countersignature in this role; repeatable.",
)
@click.option(
    "--policy", type=_path, metavar="FILE", help="YAML file with your rules: must_drop, must_keep, ..."
)
@click.option(
    "--expect-model", "model", metavar="SHA|FILE", help="SHA-256 or file that model.onnx must equal."
)
@click.option(
    "--expect-original", "original", metavar="SHA|FILE", help="SHA-256 or file of the original model."
)
@click.option(
    "--expect-columns",
    "columns",
    type=_path,
    metavar="FILE",
    help="Your list of the network's columns, in order: a CSV header, a JSON list, or one name a line.",
)
@click.option("--previous", type=_path, metavar="BUNDLE", help="The bundle this one must follow.")
@click.option(
    "--timeout",
    type=float,
    callback=_seconds,
    default=300.0,
    show_default=True,
    help="Time limit for running the model, in seconds.",
)
@_json
def verify(
    bundle: Path,
    trust: Sequence[Path],
    roles: Sequence[str],
    policy: Path | None,
    model: str | None,
    original: str | None,
    columns: Path | None,
    previous: Path | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Verify the statements of BUNDLE's report from its files alone; list those that do not hold."""
    from glprune.audit import findings, signing
    from glprune.audit.checks import lineage
    from glprune.audit.checks.columns import read_columns
    from glprune.audit.checks.policy import read_policy
    from glprune.audit.verify import VerificationOptions, read_report
    from glprune.audit.verify import verify as run_verify
    from glprune.cli.audit_console import print_verdict

    if roles and not trust:
        raise UsageError("--require-role needs --trust: a role counts where you trust the key.")
    options = VerificationOptions(
        trust=[signing.read_public_key(path) for path in trust],
        roles=roles,
        policy=(read_policy(policy), str(policy)) if policy is not None else None,
        model=lineage.expected_digest(model) if model is not None else None,
        original=lineage.expected_digest(original) if original is not None else None,
        previous=read_report(previous) if previous is not None else None,
        columns=(read_columns(columns), str(columns)) if columns is not None else None,
    )
    verdict = run_verify(bundle, options, seconds=timeout)
    if as_json:
        click.echo(json.dumps(findings.as_record(verdict), indent=2))
    else:
        print_verdict(_console(), verdict)
    sys.exit(verdict.exit_code)


@click.command()
@click.argument("key", type=_path)
def keygen(key: Path) -> None:
    """Write a new Ed25519 key pair: the private KEY and the public KEY.pub."""
    from glprune.audit.signing import make_key

    public = make_key(key)
    click.echo(f"wrote {key} (keep it secret) and {public} (give it to those who verify)", err=True)


@click.command()
@_bundle
@_key
def sign(bundle: Path, key: Path) -> None:
    """Sign BUNDLE's manifest as its producer."""
    from glprune.audit import signing

    secret = signing.read_private_key(key)
    path = signing.sign(bundle, _intact_manifest(bundle), secret)
    click.echo(f"wrote {path}; key {secret.public_key.keyid}", err=True)


@click.command()
@_bundle
@_key
@click.option("--role", required=True, help="Role in which you sign, such as validator.")
@click.option("--statement", required=True, metavar="TEXT", help="Your statement on the bundle.")
def countersign(bundle: Path, key: Path, role: str, statement: str) -> None:
    """Add a second person's signature and statement to BUNDLE."""
    from glprune.audit import signing

    secret = signing.read_private_key(key)
    path = signing.countersign(bundle, _intact_manifest(bundle), secret, role, statement)
    click.echo(f"wrote {path}; key {secret.public_key.keyid}", err=True)


def _intact_manifest(bundle: Path) -> bytes:
    """Read the manifest of a bundle whose files all match it: only such bundles are signed.

    Raises:
        UsageError: A file is missing, changed or unreadable.
    """
    from glprune.audit.verify import integrity_findings, open_bundle
    from glprune.schema import bundle as bundles

    opened = open_bundle(bundle)
    findings = integrity_findings(opened)
    if findings:
        raise UsageError(f"{bundle} is not signed: {findings[0]}; `glprune verify` lists every finding.")
    return opened.files.contents[bundles.MANIFEST]


@click.command()
@click.argument("old", type=_path)
@click.argument("new", type=_path)
@_json
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Show what changed from bundle OLD to bundle NEW: features, metrics, sizes. Verify both first."""
    from glprune.audit.diff import compare
    from glprune.audit.verify import read_report
    from glprune.cli.audit_console import print_comparison

    _show(compare(read_report(old), read_report(new)), as_json, print_comparison)


@click.command()
@_bundle
@click.argument("feature")
@_json
def explain(bundle: Path, feature: str, as_json: bool) -> None:
    """Show everything that BUNDLE reports on one FEATURE, named by feature or column. Verify it first."""
    from glprune.audit.explain import explain as explain_feature
    from glprune.audit.verify import read_report
    from glprune.cli.audit_console import print_story

    _show(explain_feature(read_report(bundle), feature), as_json, print_story)


@click.command()
@_bundle
@click.option("--out", type=_path, help="File to write; default standard output.")
@click.option("--markdown", is_flag=True, help="Render report.md, the findings only, instead.")
def render(bundle: Path, out: Path | None, markdown: bool) -> None:
    """Render report.html again from BUNDLE's report.json."""
    from glprune.audit.findings import UnreadableError
    from glprune.audit.verify import read_report
    from glprune.report.html import can_draw, render_html
    from glprune.report.markdown import render_markdown

    pictures = not markdown and can_draw()
    report = read_report(bundle)
    try:
        page = render_markdown(report) if markdown else render_html(report, pictures)
    except Exception as error:  # noqa: BLE001  an untrusted report may contradict itself in any way
        raise UnreadableError(
            f"{bundle}: its report contradicts itself ({type(error).__name__}); see `glprune verify`."
        ) from None
    if not pictures and not markdown:
        click.echo("note: matplotlib is not installed; the page has no pictures", err=True)
    if out is None:
        click.echo(page, nl=False)
        return
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); choose another --out.") from None


COMMANDS = (verify, keygen, sign, countersign, diff, explain, render)


def _show(record: dict[str, Any], as_json: bool, printer: Callable[[Console, dict[str, Any]], None]) -> None:
    """Print a record as JSON, or with a function for the terminal."""
    if as_json:
        click.echo(json.dumps(record, indent=2))
    else:
        printer(_console(), record)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)
