"""Rewrite the auditor's locked list from this environment: python -m tests.auditor_requirements."""

from importlib import metadata

from packaging.requirements import Requirement

from tests.paths import ROOT

FILE = ROOT / "glprune" / "audit" / "requirements.txt"
DIRECT = (
    "click",
    "confusable-homoglyphs",
    "jinja2",
    "matplotlib",
    "numpy",
    "onnx",
    "onnxruntime",
    "pyarrow",
    "pydantic",
    "pynacl",
    "rich",
    "ruamel.yaml",
    "safetensors",
    "securesystemslib[crypto]",
)


def pins():
    """Every distribution the direct ones need, with the version that is installed here."""
    found, waiting = {}, [Requirement(text) for text in DIRECT]
    while waiting:
        wanted = waiting.pop()
        name = metadata.metadata(wanted.name)["Name"].lower().replace("_", "-")
        found[name] = metadata.version(wanted.name)
        for text in metadata.requires(wanted.name) or ():
            need = Requirement(text)
            extras = wanted.extras or {""}
            wanted_here = need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras)
            if wanted_here and need.name.lower().replace("_", "-") not in found:
                waiting.append(need)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    comments = [line for line in FILE.read_text().splitlines() if line.startswith("#")]
    FILE.write_text("\n".join([*comments, *(f"{n}=={v}" for n, v in pins().items())]) + "\n")
