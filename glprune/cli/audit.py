"""The commands for auditors: verify, sign, diff, explain, render and more. None needs PyTorch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from glprune.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

_VERIFY_EPILOG = (
    "Exit codes: 0 verified; 1 a check failed; 2 usage; 3 incomplete: something in the bundle could not be "
    "checked, such as a signature without --trust; 4 policy violated; 5 unreadable or unknown schema."
)
_BUNDLE_EPILOG = (
    "Exit codes: 0 done; 2 usage, a key, or a file that cannot be read or written; 5 not a bundle, or of a "
    "schema this version does not know."
)
_KEY_EPILOG = "Exit codes: 0 done; 2 usage, a key, or a file that cannot be read or written."
_MAX_TIMEOUT = 86_400  # seconds
_path = click.Path(path_type=Path)
_bundle = click.argument("bundle", type=_path)
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
_key = click.option(
    "--key", type=_path, required=True, help="Your private key: a PEM file, Ed25519 or ECDSA."
)


_F = TypeVar("_F", bound=Callable[..., Any])


def timeout_option(what: str) -> Callable[[_F], _F]:
    """Return the option ``--timeout`` of a command; ``what`` says what it limits."""
    return click.option(
        "--timeout", type=float, callback=_seconds_of, default=300.0, show_default=True, help=what
    )


def _seconds_of(context: click.Context, option: click.Parameter, value: float) -> float:
    """Return the value of ``--timeout``, or refuse it."""
    if not 1 <= value <= _MAX_TIMEOUT:  # nor is it NaN
        raise click.BadParameter(f"{value:g} is not between 1 and {_MAX_TIMEOUT:,}.")
    return value


@click.command(epilog=_VERIFY_EPILOG)
@_bundle
@click.option(
    "--trust",
    multiple=True,
    metavar="[ROLE=]KEY",
    help="Public key (PEM file) that you trust, in one role (producer=KEY, validator=KEY) or in any; "
    "repeatable.",
)
@click.option(
    "--timestamp-authority",
    "authority",
    type=_path,
    metavar="FILE",
    help="Root certificate (PEM) of the authority whose timestamp you require, with others of its chain.",
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
    "--expect-original",
    "original",
    metavar="SHA|FILE",
    help="SHA-256 or file of the original model, or a statement on it by `glprune attest-original`.",
)
@click.option(
    "--expect-columns",
    "columns",
    type=_path,
    metavar="FILE",
    help="Your list of the network's columns, in order: a CSV header, a JSON list, or one name a line.",
)
@click.option("--previous", type=_path, metavar="BUNDLE", help="The bundle this one must follow.")
@timeout_option(
    "Time limit for running the model, in seconds; the other checks have a limit of processor time that "
    "grows with the files and with this one."
)
@_json
def verify(
    bundle: Path,
    trust: Sequence[str],
    authority: Path | None,
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
    from glprune.audit import findings
    from glprune.audit.checks import lineage
    from glprune.audit.checks.columns import read_columns
    from glprune.audit.checks.policy import read_policy
    from glprune.audit.parsed_bundle import read_report
    from glprune.audit.signing import check_role
    from glprune.audit.trust.roles import read_trust
    from glprune.audit.trust.timestamps import read_authority
    from glprune.audit.verify import VerificationOptions
    from glprune.audit.verify import verify as run_verify
    from glprune.cli.audit_console import print_verdict

    if roles and not trust:
        raise UsageError("--require-role needs --trust: a role counts where you trust the key.")
    for role in roles:
        check_role(role)
    trusted = read_trust(trust)
    options = VerificationOptions(
        trust=trusted.keys,
        key_roles=trusted.roles,
        authority=read_authority(authority) if authority is not None else None,
        roles=roles,
        policy=(read_policy(policy), str(policy)) if policy is not None else None,
        model=lineage.expected_digest(model) if model is not None else None,
        original=lineage.expected_original(original) if original is not None else None,
        previous=read_report(previous) if previous is not None else None,
        columns=(read_columns(columns), str(columns)) if columns is not None else None,
    )
    verdict = run_verify(bundle, options, seconds=timeout)
    if as_json:
        click.echo(json.dumps(findings.as_record(verdict), indent=2))
    else:
        print_verdict(_console(), verdict)
    sys.exit(verdict.exit_code)


@click.command(epilog=_KEY_EPILOG)
@click.argument("key", type=_path)
def keygen(key: Path) -> None:
    """Write a new Ed25519 key pair: the private KEY and the public KEY.pub."""
    from glprune.audit.signing import make_key

    public = make_key(key)
    click.echo(f"wrote {key} (keep it secret) and {public} (give it to those who verify)", err=True)


@click.command(epilog=_BUNDLE_EPILOG)
@_bundle
@_key
@click.option(
    "--timestamp-token",
    "token",
    type=_path,
    metavar="FILE",
    help="RFC 3161 reply of an authority on BUNDLE's MANIFEST.json, to be put beside the signature.",
)
def sign(bundle: Path, key: Path, token: Path | None) -> None:
    """Sign BUNDLE's manifest as its producer."""
    from glprune.audit import signing
    from glprune.audit.trust.timestamps import store_timestamp

    secret, manifest = signing.read_private_key(key), _intact_manifest(bundle)
    if token is not None:
        click.echo(f"wrote {store_timestamp(bundle, manifest, token)}", err=True)
    path = signing.sign(bundle, manifest, secret)
    click.echo(f"wrote {path}; key {secret.public_key.keyid}", err=True)


@click.command(epilog=_BUNDLE_EPILOG)
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


@click.command("attest-original", epilog=_KEY_EPILOG)
@click.argument("model", type=_path)
@_key
@click.option("--role", default="owner", show_default=True, help="Role in which you sign.")
@click.option("--statement", default="", metavar="TEXT", help="Your statement on the model.")
@click.option("--out", type=_path, metavar="FILE", help="File to write; default MODEL.attestation.json.")
def attest_original(model: Path, key: Path, role: str, statement: str, out: Path | None) -> None:
    """State, signed, that MODEL is the original: the file with the trained weights before pruning."""
    from glprune.audit import signing
    from glprune.audit.trust import attestation

    secret = signing.read_private_key(key)
    path = out or Path(f"{model}.attestation.json")
    attestation.attest_original(model, secret, role, statement, path)
    click.echo(f"wrote {path}; key {secret.public_key.keyid}", err=True)


def _intact_manifest(bundle: Path, done: str = "signed") -> bytes:
    """Read the manifest of a bundle whose files all match it: only such bundles are signed or exported.

    Raises:
        UsageError: A file is missing, changed or unreadable.
    """
    from glprune.audit.parsed_bundle import open_bundle
    from glprune.audit.verify import integrity_findings
    from glprune.schema import bundle as bundles

    opened = open_bundle(bundle)
    findings = integrity_findings(opened)
    if findings:
        raise UsageError(f"{bundle} is not {done}: {findings[0]}; `glprune verify` lists every finding.")
    return opened.files.contents[bundles.MANIFEST]


@click.command(epilog=_BUNDLE_EPILOG)
@click.argument("old", type=_path)
@click.argument("new", type=_path)
@_json
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Show what changed from bundle OLD to bundle NEW: features, metrics, sizes. Verify both first."""
    from glprune.audit.diff import compare
    from glprune.audit.parsed_bundle import read_report
    from glprune.cli.audit_console import print_comparison

    _show(compare(read_report(old), read_report(new)), as_json, print_comparison)


@click.command(epilog=_BUNDLE_EPILOG)
@_bundle
@click.argument("feature")
@_json
def explain(bundle: Path, feature: str, as_json: bool) -> None:
    """Show everything that BUNDLE reports on one FEATURE, named by feature or column. Verify it first."""
    from glprune.audit.explain import explain as explain_feature
    from glprune.audit.parsed_bundle import read_report
    from glprune.cli.audit_console import print_story

    _show(explain_feature(read_report(bundle), feature), as_json, print_story)


@click.command(epilog=_BUNDLE_EPILOG)
@_bundle
@click.option("--out", type=_path, help="File to write; default standard output.")
@click.option("--markdown", is_flag=True, help="Render report.md, the findings only, instead.")
def render(bundle: Path, out: Path | None, markdown: bool) -> None:
    """Render report.html again from BUNDLE's report.json."""
    from glprune.audit.findings import UnreadableError
    from glprune.audit.parsed_bundle import read_report
    from glprune.report.html import can_draw, render_html
    from glprune.report.markdown import render_markdown

    pictures = not markdown and can_draw()
    report = read_report(bundle)
    try:
        page = render_markdown(report) if markdown else render_html(report, pictures)
    except Exception as error:  # noqa: BLE001  an untrusted report may contradict itself in any way
        raise UnreadableError(_contradiction(bundle, error)) from None
    if not pictures and not markdown:
        click.echo("note: matplotlib is not installed; the page has no pictures", err=True)
    if out is None:
        click.echo(page, nl=False)
        return
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); choose another --out.") from None


@click.command("export-card", epilog=_BUNDLE_EPILOG)
@_bundle
@click.option("--out", type=_path, metavar="FOLDER", help="Folder to write to; default BUNDLE.card.")
def export_card(bundle: Path, out: Path | None) -> None:
    """Write a model card and a CycloneDX bill of materials of BUNDLE's model. Verify it first."""
    from glprune.audit.findings import UnreadableError
    from glprune.audit.parsed_bundle import read_report
    from glprune.report.ml_bom import make_ml_bom
    from glprune.report.model_card import render_model_card
    from glprune.schema.bundle import as_json

    folder = out or Path(f"{bundle}.card")
    if folder.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(f"{folder} is inside the bundle, whose files are a closed set; name another --out.")
    _intact_manifest(bundle, "exported")
    report = read_report(bundle)
    try:
        texts = {"model_card.md": render_model_card(report), "bom.cdx.json": as_json(make_ml_bom(report))}
        files = {name: text.encode() for name, text in texts.items()}
    except Exception as error:  # noqa: BLE001  an untrusted report may contradict itself in any way
        raise UnreadableError(_contradiction(bundle, error)) from None
    _write_new(folder, files)
    click.echo(f"wrote {', '.join(str(folder / name) for name in files)}", err=True)


def _contradiction(bundle: Path, error: Exception) -> str:
    return f"{bundle}: its report contradicts itself ({type(error).__name__}); see `glprune verify`."


def _write_new(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files to a folder that has none of them.

    Raises:
        UsageError: One exists, or cannot be written.
    """
    for path in (folder / name for name in files):
        if path.exists():
            raise UsageError(f"{path} exists; remove it or name another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); name another --out.") from None


COMMANDS = (verify, keygen, sign, countersign, attest_original, diff, explain, render, export_card)


def _show(record: dict[str, Any], as_json: bool, printer: Callable[[Console, dict[str, Any]], None]) -> None:
    """Print a record as JSON, or with a function for the terminal."""
    if as_json:
        click.echo(json.dumps(record, indent=2))
    else:
        printer(_console(), record)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)
