"""Bad bundles, keys and rules, as the auditor's commands meet them; the bundle lies in ``bundle``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from glprune.schema import bundle as bundles
from glprune.schema.manifest import write_manifest
from tests.bad_inputs import LAUGHS, NOT_ALLOWED, Bad, Make, content


@dataclass(frozen=True)
class Tampered:
    """A bundle that ``glprune verify`` reads and fails.

    Attributes:
        name: What is wrong.
        finding: A line of its findings; ``...`` stands for words of a library.
        make: Changes the folder that holds the bundle.
    """

    name: str
    finding: str
    make: Make


def put(name: str, raw: str | bytes) -> Make:
    """A file of the bundle that is this."""
    return content(raw, f"bundle/{name}")


def edited(name: str, change: Callable[[Any], object]) -> Make:
    """A JSON file of the bundle with a change."""

    def make(folder: Path) -> None:
        value = json.loads((folder / "bundle" / name).read_text())
        change(value)
        (folder / "bundle" / name).write_text(json.dumps(value))

    return make


def sealed(make: Make) -> Make:
    """A change, and a manifest of what is there then."""

    def whole(folder: Path) -> None:
        make(folder)
        write_manifest(folder / "bundle")

    return whole


def sparse(name: str, size: int) -> Make:
    """A file of the bundle that claims a size and holds nothing."""

    def make(folder: Path) -> None:
        with (folder / "bundle" / name).open("wb") as stream:
            stream.truncate(size)

    return make


def instead(make: Callable[[Path], object], name: str) -> Make:
    """Something else where a file of the bundle was."""

    def whole(folder: Path) -> None:
        (folder / "bundle" / name).unlink()
        make(folder / "bundle" / name)

    return whole


def model(change: Callable[[onnx.ModelProto], object]) -> Make:
    """Another ONNX file, sealed."""

    def make(folder: Path) -> None:
        path = folder / "bundle" / bundles.ONNX
        proto = onnx.load_from_string(path.read_bytes())
        change(proto)
        path.write_bytes(proto.SerializeToString(deterministic=True))

    return sealed(make)


def external(location: str) -> Callable[[onnx.ModelProto], None]:
    """The first weights lie outside the file."""

    def change(proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def lying(proto: onnx.ModelProto) -> None:
    """Weights of 2^80 values that are few bytes."""
    tensor = next(t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT)
    del tensor.dims[:]
    tensor.dims.extend([1 << 40, 1 << 40])


def nested(depth: int) -> Callable[[onnx.ModelProto], None]:
    """An If in an If in an If."""

    def change(proto: onnx.ModelProto) -> None:
        graph = onnx.helper.make_graph([], "innermost", [], [])
        for level in range(depth):
            node = onnx.helper.make_node(
                "If", ["c"], ["o"], name=str(level), then_branch=graph, else_branch=graph
            )
            graph = onnx.helper.make_graph([node], str(level), [], [])
        proto.graph.node.extend(graph.node)

    return change


def key(name: str, text: str) -> Make:
    return content(text, name)


def deep(levels: int) -> str:
    return '{"schema": ' + "[" * levels + "]" * levels + "}"


def report_refused(name: str, raw: str | bytes, why: str) -> list[Bad]:
    """A report no command can read."""
    return [
        Bad(f"{command.format(0)} where the report {name}", command.format("bundle"), 5, f"bundle: report.json: {why}.", put(bundles.REPORT, raw))
        for command in ("explain {} a", "render {}", "diff {0} {0}")
    ]  # fmt: skip


PEM = "is not a readable PEM private key of Ed25519 or ECDSA."
REFUSED = [
    *(Bad(f"{command.format(0)} of nothing", command.format("absent"), 5, "absent: cannot be read (No such file or directory).") for command in ("verify {}", "explain {} a", "render {}", "diff {0} {0}")),
    *(Bad(f"{command.format(0)} of a file", command.format("data.csv"), 5, "data.csv is not a folder; name the folder that `glprune run` wrote.") for command in ("verify {}", "explain {} a", "render {}", "diff {0} {0}")),
    Bad("verify of a folder that is no bundle", "verify .", 5, ". holds neither MANIFEST.json nor report.json: not a bundle."),
    Bad("verify of a link to itself", "verify loop", 5, "loop is not a folder; name the folder that `glprune run` wrote.", lambda f: (f / "loop").symlink_to("loop")),
    Bad("verify of a name too long", f"verify {'b' * 300}", 5, "bbb...: cannot be read (File name too long)."),
    Bad("report of a later schema", "verify bundle", 5, "report.json is of schema 'glprune.report/9'; glprune ... reads glprune.report/2.", edited(bundles.REPORT, lambda r: r.update(schema="glprune.report/9"))),
    *report_refused("is empty", "", "not JSON (Expecting value: line 1 column 1 (char 0))"),
    *report_refused("is cut short", '{"schema": "glprune.rep', "not JSON (Unterminated string starting at: line 1 column 12 (char 11))"),
    *report_refused("is nested 100,000 deep", deep(100_000), "nested too deeply"),
    *report_refused("is nested 100 deep", deep(100), "nested deeper than 64 levels"),
    *report_refused("has a number of 10,000 digits", '{"schema": ' + "9" * 10_000 + "}", "not JSON (Exceeds the limit ..."),
    *report_refused("has a number past all doubles", '{"schema": 1e999}', "1e999 is too large a number"),
    *report_refused("holds NaN", '{"schema": NaN}', "NaN is not a JSON number"),
    *report_refused("has a key twice", '{"schema": 1, "schema": 2}', "key 'schema' appears twice"),
    *report_refused("is UTF-16", '{"schema": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
    *report_refused("is a list", "[]", "is not a JSON object"),
    Bad("report with 200,000 keys, the last twice", "render bundle", 5, "bundle: report.json: key 'x' appears twice.", put(bundles.REPORT, "{" + "".join(f'"{i}":0,' for i in range(200_000)) + '"x":0,"x":0}')),
    Bad("report with half a character", "render bundle", 5, "bundle: report.json...", edited(bundles.REPORT, lambda r: r.update(title="\ud800"))),
    Bad("report with an unknown key", "render bundle", 5, "bundle: report.json /extra: Extra inputs are not permitted.", edited(bundles.REPORT, lambda r: r.update(extra=1))),
    Bad("report of 70 MB", "render bundle", 5, "bundle: report.json: has 73,400,320 bytes; at most 64 MiB are read.", sparse(bundles.REPORT, 70 << 20)),
    Bad("report is a pipe", "render bundle", 5, "bundle: report.json: is not a plain file.", instead(os.mkfifo, bundles.REPORT)),
    Bad("report is a link", "render bundle", 5, "bundle: report.json: is a symbolic link.", instead(lambda p: p.symlink_to("/etc/passwd"), bundles.REPORT)),
    Bad("report that contradicts itself", "render bundle", 5, "bundle: its report contradicts itself (...); see `glprune verify`.", edited(bundles.REPORT, lambda r: r.update(performance=[]))),
    Bad("no such feature", "explain bundle income", 2, "the report has no feature 'income'; features: ..."),
    Bad("feature that could steer a terminal", "explain bundle $'\\e[2J'".replace("$'\\e", "'\x1b"), 2, "the report has no feature '\\x1b[2J'; features: ..."),
    Bad("page into a missing folder", "render bundle --out no/page.html", 2, "no/page.html: cannot be written (No such file or directory); choose another --out."),
    Bad("page into a folder", "render bundle --out bundle", 2, "bundle: cannot be written (Is a directory); choose another --out."),
    Bad("key that is there", "keygen data.csv", 2, "data.csv exists; a key is never overwritten."),
    Bad("key without a name", "keygen .", 2, ". is a folder, not a file; name the key's file."),
    Bad("key into a missing folder", "keygen no/key", 2, "no/key: cannot be written (No such file or directory); name another place."),
    Bad("no key", "sign bundle --key absent", 2, "absent cannot be read (No such file or directory); name a PEM file."),
    Bad("key is a folder", "sign bundle --key bundle", 2, "bundle is a folder, not a file; name a PEM file."),
    Bad("key is a pipe", "sign bundle --key pipe", 2, "pipe is a pipe or device, not a file; name a PEM file.", lambda f: os.mkfifo(f / "pipe")),
    Bad("key is text", "sign bundle --key data.csv", 2, f"data.csv {PEM}"),
    Bad("key is a broken PEM", "sign bundle --key k", 2, f"k {PEM}", key("k", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")),
    Bad("role with a slash", "countersign bundle --key me --role ../x --statement s", 2, "role '../x': use lower-case letters, digits and '-', such as validator."),
    Bad("role of the producer", "countersign bundle --key me --role producer --statement s", 2, "role 'producer' is that of `glprune sign`; name another, such as validator."),
    Bad("countersigning without a statement", "countersign bundle --key me --role validator", 2, "Missing option '--statement'; see glprune countersign --help."),
    Bad("signing what was changed", "sign bundle --key me", 2, "bundle is not signed: plan.json: its SHA-256 is not the one of /subject/... in the manifest; `glprune verify` lists every finding.", edited(bundles.PLAN, lambda p: p.update(factory="os:system"))),
    Bad("trusting a pipe", "verify bundle --trust pipe", 2, "pipe is a pipe or device, not a file; name a PEM file.", lambda f: os.mkfifo(f / "pipe")),
    Bad("trusting a private key", "verify bundle --trust me", 2, "me is a private key; name its public half."),
    Bad("trusting text", "verify bundle --trust data.csv", 2, "data.csv is not a PEM public key of Ed25519 or ECDSA; `glprune keygen` creates one."),
    Bad("trusting a key as a role that is none", "verify bundle --trust Boss=me.pub", 2, "role 'Boss': use lower-case letters, digits and '-', such as validator."),
    Bad("role without trust", "verify bundle --require-role validator", 2, "--require-role needs --trust: a role counts where you trust the key."),
    Bad("no time", "verify bundle --timeout 0", 2, "Invalid value for '--timeout': 0 is not between 1 and 86,400; see glprune verify --help."),
    Bad("time that is no number", "verify bundle --timeout soon", 2, "Invalid value for '--timeout': 'soon' is not a valid float...; see glprune verify --help."),
    Bad("time that is not a number", "verify bundle --timeout nan", 2, "Invalid value for '--timeout': nan is not between 1 and 86,400; see glprune verify --help."),
    Bad("time without end", "verify bundle --timeout inf", 2, "Invalid value for '--timeout': inf is not between 1 and 86,400; see glprune verify --help."),
    Bad("expected model is neither", "verify bundle --expect-model abc", 2, "'abc' is neither a SHA-256 nor a file (cannot be read (No such file or directory))."),
    Bad("expected model is a pipe", "verify bundle --expect-model pipe", 2, "'pipe' is neither a SHA-256 nor a file (is a pipe or device, not a file).", lambda f: os.mkfifo(f / "pipe")),
    Bad("expected original is a folder", "verify bundle --expect-original bundle", 2, "'bundle' is neither a SHA-256 nor a file (is a folder, not a file)."),
    Bad("previous bundle is none", "verify bundle --previous data.csv", 5, "data.csv is not a folder; name the folder that `glprune run` wrote."),
    Bad("no rules", "verify bundle --policy absent.yaml", 2, "absent.yaml cannot be read (No such file or directory); name a YAML file."),
    Bad("rules are a pipe", "verify bundle --policy pipe", 2, "pipe is a pipe or device, not a file; name a YAML file.", lambda f: os.mkfifo(f / "pipe")),
    Bad("rules are a bomb", "verify bundle --policy r.yaml", 2, "r.yaml:1: " + NOT_ALLOWED.format("&a"), content(LAUGHS, "r.yaml")),
    Bad("rules with a tag that runs code", "verify bundle --policy r.yaml", 2, "r.yaml:1: " + NOT_ALLOWED.format("!!python/name:os.system"), content("must_drop: !!python/name:os.system\n", "r.yaml")),
    Bad("rules with a huge number", "verify bundle --policy r.yaml", 2, "r.yaml:1: 9999999999999999999999999999999999999999 does not fit 64 bits; use a smaller number.", content(f"must_drop: [{'9' * 5000}]\n", "r.yaml")),
    Bad("rules of another kind", "verify bundle --policy r.yaml", 2, "r.yaml:1: must_drop should be a list, such as [sex].", content("must_drop: sex\n", "r.yaml")),
    Bad("rules with an unknown key", "verify bundle --policy r.yaml", 2, "r.yaml:2: must_drp is not a key. Did you mean 'must_drop'? Keys: must_drop, must_keep, protected, derived_from.", content("must_keep: [a]\nmust_drp: [sex]\n", "r.yaml")),
    Bad("rules with a number for a name", "verify bundle --policy r.yaml", 2, "r.yaml:1: must_drop.0 should be a name; put it in quotes.", content("must_drop: [1]\n", "r.yaml")),
    Bad("rules of descent that are a list", "verify bundle --policy r.yaml", 2, "r.yaml:1: derived_from should map names to lists, such as {age_band: [age]}.", content("derived_from: [a]\n", "r.yaml")),
    Bad("rules of descent from a number", "verify bundle --policy r.yaml", 2, "r.yaml:2: derived_from.a should be a list.", content("derived_from:\n  a: 3\n", "r.yaml")),
]  # fmt: skip


def each_json(name: str, raw: str | bytes, why: str) -> list[Tampered]:
    """A JSON file of the bundle no one can read, whichever it is."""
    files = (bundles.MANIFEST, bundles.PLAN, bundles.INPUT_SCHEMA, bundles.SCHEMA, bundles.REPORT)
    return [Tampered(f"{file} {name}", f"C4 {file}: {why}", put(file, raw)) for file in files]


def subjects(change: Callable[[list[Any]], object]) -> Make:
    return edited(bundles.MANIFEST, lambda m: change(m["subject"]))


DIGEST = {"sha256": "0" * 64}
ONNX_FILE = "C6 model.onnx"
TAMPERED = [
    *each_json("is empty", "", "not JSON (Expecting value: line 1 column 1 (char 0))"),
    *each_json("is nested 100,000 deep", deep(100_000), "nested too deeply"),
    *each_json("holds Infinity", '{"a": -Infinity}', "-Infinity is not a JSON number"),
    *each_json("is Latin-1", '{"a": "ü"}'.encode("latin-1"), "not UTF-8 at byte 7"),
    *each_json("has a mark at its start", b"\xef\xbb\xbf{}", "not JSON (Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0))"),
    Tampered("manifest names a file above", "C1 ../x: is not a file of a bundle", subjects(lambda s: s.append({"name": "../x", "digest": DIGEST}))),
    Tampered("manifest names an absolute path", "C1 /etc/passwd: is not a file of a bundle", subjects(lambda s: s.append({"name": "/etc/passwd", "digest": DIGEST}))),
    Tampered("manifest names a file 5,000 times", "C1 MANIFEST.json /subject/...: 'plan.json' is listed twice", subjects(lambda s: s.extend([{"name": bundles.PLAN, "digest": DIGEST}] * 5000))),
    Tampered("manifest names a file to steer a terminal", "C1 \\u001b]0;x\\u0007\\u202e: is not a file of a bundle", subjects(lambda s: s.append({"name": "\x1b]0;x\x07\u202e", "digest": DIGEST}))),
    Tampered("manifest counts past 64 bits", "C2 MANIFEST.json /predicate/bytes: says 1000...", edited(bundles.MANIFEST, lambda m: m["predicate"].update(bytes=10**30))),
    Tampered("file that no manifest names", "C1 evil.py: is in the folder and not in the manifest", put("evil.py", "x")),
    Tampered("folder", "C1 code: is a folder; a bundle has only the folders signatures/ and frontier/", lambda f: (f / "bundle" / "code").mkdir()),
    Tampered("pipe", "C1 pipe: is not a plain file", lambda f: os.mkfifo(f / "bundle" / "pipe")),
    Tampered("link out of the bundle", "C1 plan.json: is a symbolic link", instead(lambda p: p.symlink_to("/etc/passwd"), bundles.PLAN)),
    Tampered("link to itself", "C1 plan.json: is a symbolic link", instead(lambda p: p.symlink_to(p.name), bundles.PLAN)),
    Tampered("signature that is a pipe", "C1 signatures/producer.dsse.json: is not a plain file", lambda f: ((f / "bundle/signatures").mkdir(), os.mkfifo(f / "bundle/signatures/producer.dsse.json"))),
    Tampered("signature that is a number", "C3 signatures/producer.dsse.json: is not a DSSE envelope (...)", lambda f: ((f / "bundle/signatures").mkdir(), put("signatures/producer.dsse.json", "3")(f))),
    Tampered("plan of 70 MB", "C1 plan.json: has 73,400,320 bytes; at most 64 MiB are read", sparse(bundles.PLAN, 70 << 20)),
    Tampered("recipe of 2 MB", "C1 recipe.resolved.yaml: has 2,097,152 bytes; at most 1 MiB are read", sparse(bundles.RECIPE, 2 << 20)),
    Tampered("recipe that is a bomb", "C4 recipe.resolved.yaml: line 1: " + NOT_ALLOWED.format("&a"), put(bundles.RECIPE, LAUGHS)),
    Tampered("recipe that runs code", "C4 recipe.resolved.yaml: line 1: " + NOT_ALLOWED.format("!!python/name:os.system"), put(bundles.RECIPE, '"task": !!python/name:os.system\n')),
    Tampered("ONNX file is empty", f"{ONNX_FILE}...", sealed(put(bundles.ONNX, ""))),
    Tampered("ONNX file is text", "C4 model.onnx: not an ONNX model (Error parsing message...)", sealed(put(bundles.ONNX, "weights"))),
    Tampered("ONNX file is cut short", "C4 model.onnx: not an ONNX model (Error parsing message...)", sealed(lambda f: put(bundles.ONNX, (f / "bundle" / bundles.ONNX).read_bytes()[:-9])(f))),
    Tampered("ONNX file with weights above", f"{ONNX_FILE} initializer ...: its values are outside the file", model(external("../pipe"))),
    Tampered("ONNX file with weights elsewhere", f"{ONNX_FILE} initializer ...: its values are outside the file", model(external("/etc/passwd"))),
    Tampered("ONNX file with weights beside it", f"{ONNX_FILE} initializer ...: its values are outside the file", model(external(bundles.WEIGHTS))),
    Tampered("ONNX file with weights of 2^80 values", f"{ONNX_FILE}...", model(lying)),
    Tampered("ONNX file nested 30 deep", "C4 model.onnx: graphs are nested deeper than ...", model(nested(12))),
    Tampered("ONNX file twice", f"{ONNX_FILE}...", sealed(lambda f: put(bundles.ONNX, (f / "bundle" / bundles.ONNX).read_bytes() * 2)(f))),
    Tampered("weights with a header of 4 EB", "C4 model.safetensors: is truncated or not a safetensors file", sealed(put(bundles.WEIGHTS, (1 << 62).to_bytes(8, "little") + b"{}"))),
    Tampered("weights are a pickle", "C4 model.safetensors: is truncated or not a safetensors file", sealed(put(bundles.WEIGHTS, b"\x80\x02cos\nsystem\n."))),
    Tampered("weights with a name twice", "C4 model.safetensors: key 'a' appears twice", sealed(put(bundles.WEIGHTS, (16).to_bytes(8, "little") + b'{"a": 1, "a": 2}'))),
    Tampered("page with a script", "C12 report.html ...", sealed(put(bundles.PAGE, "<script>alert(1)</script>"))),
    Tampered("page that is not UTF-8", "C12 report.html: is not UTF-8", sealed(put(bundles.PAGE, b"\xff"))),
    Tampered("feature that is a script", "C7 ...", sealed(edited(bundles.REPORT, lambda r: r["features"][0].update(name="<script>[red]\x1b[2J")))),
    Tampered("plan that names a command for a factory", "C7 plan.json /factory...", sealed(edited(bundles.PLAN, lambda p: p.update(factory="os:system", arguments={"command": "touch ran"})))),
    Tampered("width of 10^18 columns", "C7 ...", sealed(edited(bundles.PLAN, lambda p: p["inputs"][0].update(size=10**18)))),
]  # fmt: skip
